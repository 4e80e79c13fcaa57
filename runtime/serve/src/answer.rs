use std::time::{Duration, Instant};

use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use pipeline::Usage;
use serde::Serialize;
use telemetry::Causes;

use crate::error::ApiError;

pub(crate) const COMPUTE_TOKENS: HeaderName = HeaderName::from_static("x-compute-tokens");
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

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
            tracing::error!(error = %Causes(&error), "no JSON");
            ApiError::internal()
        })?;
        let mut response = Response::new(Body::from(json));
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
    let timing = usage.timing;
    let [tokenize, queue, forward] = [timing.tokenize, timing.queue, timing.forward]
        .map(|duration| duration.as_secs_f64() * 1e3);
    let stages =
        format!("tokenize;dur={tokenize:.3}, queue;dur={queue:.3}, forward;dur={forward:.3}");
    let headers = response.headers_mut();
    if let Ok(stages) = HeaderValue::try_from(stages) {
        headers.insert(SERVER_TIMING, stages);
    }
    let numbers = [
        ("x-compute-characters", usage.num_chars),
        ("x-compute-tokens", usage.num_tokens),
        ("x-inference-time", timing.forward.as_millis() as usize),
        ("x-queue-time", timing.queue.as_millis() as usize),
        ("x-tokenization-time", timing.tokenize.as_millis() as usize),
        ("x-total-time", total.as_millis() as usize),
    ];
    for (name, number) in numbers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(number));
    }
    if usage.truncated {
        headers.insert("x-truncated", HeaderValue::from_static("true"));
    }
}
