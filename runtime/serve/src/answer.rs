use std::time::{Duration, Instant};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use pipeline::{Timing, Usage};
use serde::Serialize;
use telemetry::Causes;

use crate::error::ApiError;

pub(crate) const COMPUTE_TOKENS: HeaderName = HeaderName::from_static("x-compute-tokens");
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Headers of an answer, and room for a few more.
const NUM_HEADERS: usize = 12;

/// What a handler answers: JSON, and in headers what it cost.
#[derive(Debug, Clone)]
pub struct Answer<T> {
    value: T,
    usage: Option<Usage>,
}

impl<T> Answer<T> {
    /// `value`, and what the model took for it.
    pub fn new(value: T, usage: Usage) -> Self {
        Self { value, usage: Some(usage) }
    }

    /// `value`, for which no model was asked.
    pub(crate) fn of(value: T) -> Self {
        Self { value, usage: None }
    }

    /// The same with another value.
    pub(crate) fn map<U>(self, change: impl FnOnce(T) -> U) -> Answer<U> {
        Answer { value: change(self.value), usage: self.usage }
    }
}

impl<T: Serialize> Answer<T> {
    /// The answer to a request that came in at `started`.
    pub(crate) fn response(&self, started: Instant) -> Result<Response, ApiError> {
        let json = serde_json::to_vec(&self.value).map_err(|error| {
            tracing::error!(exception = %Causes(&error), "no JSON");
            ApiError::internal()
        })?;
        let mut response = Response::new(Body::from(json));
        *response.headers_mut() = HeaderMap::with_capacity(NUM_HEADERS);
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        if let Some(usage) = &self.usage {
            write_usage(&mut response, usage, started.elapsed());
        }
        Ok(response)
    }
}

/// What an answer cost, as <https://www.w3.org/TR/server-timing/> and in the headers of
/// text-embeddings-inference, whose times are whole milliseconds.
pub(crate) fn write_usage(response: &mut Response, usage: &Usage, total: Duration) {
    let Timing { tokenize, queue, forward } = usage.timing;
    let millis = |duration: Duration| duration.as_millis() as usize;
    let numbers = [
        (const { HeaderName::from_static("x-compute-characters") }, usage.num_chars),
        (COMPUTE_TOKENS, usage.num_tokens),
        (const { HeaderName::from_static("x-inference-time") }, millis(forward)),
        (const { HeaderName::from_static("x-queue-time") }, millis(queue)),
        (const { HeaderName::from_static("x-tokenization-time") }, millis(tokenize)),
        (const { HeaderName::from_static("x-total-time") }, millis(total)),
    ];

    // All values lie in one piece of memory.
    let mut values = String::with_capacity(128);
    for (stage, duration) in
        [("tokenize;dur=", tokenize), (", queue;dur=", queue), (", forward;dur=", forward)]
    {
        values.push_str(stage);
        push_millis(&mut values, duration);
    }
    let stages = 0..values.len();
    let mut digits = itoa::Buffer::new();
    let numbers = numbers.map(|(name, number)| {
        let start = values.len();
        values.push_str(digits.format(number));
        (name, start..values.len())
    });
    let values = Bytes::from(values);
    let headers = response.headers_mut();
    for (name, place) in numbers.into_iter().chain([(SERVER_TIMING, stages)]) {
        if let Ok(value) = HeaderValue::from_maybe_shared(values.slice(place)) {
            headers.insert(name, value);
        }
    }
    if usage.truncated {
        headers.insert("x-truncated", HeaderValue::from_static("true"));
    }
}

/// Appends `duration` in milliseconds, to the microsecond.
fn push_millis(text: &mut String, duration: Duration) {
    let micros = duration.as_micros();
    let mut digits = itoa::Buffer::new();
    text.push_str(digits.format(micros / 1000));
    text.push('.');
    text.push_str(&digits.format(1000 + micros % 1000)[1..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_have_three_decimals() {
        let millis = |nanos| {
            let mut text = String::new();
            push_millis(&mut text, Duration::from_nanos(nanos));
            text
        };
        assert_eq!(millis(0), "0.000");
        assert_eq!(millis(7_999), "0.007");
        assert_eq!(millis(1_234_567_890), "1234.567");
    }
}
