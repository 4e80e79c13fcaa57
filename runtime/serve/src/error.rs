//! Every failure as an HTTP answer: one envelope, and the only place that chooses status codes.

use std::time::Duration;

use axum::{
    Json,
    http::{
        HeaderValue, StatusCode,
        header::{ACCEPT_ENCODING, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use pipeline::PipelineError;
use serde::Serialize;
use telemetry::Causes;

use crate::model::LoadFailure;

/// Longest message and field name in an error, in bytes: they may quote the caller.
const MAX_MESSAGE_BYTES: usize = 512;
const MAX_FIELD_BYTES: usize = 64;

/// An error as the caller sees it: `{"error": {"code", "message", "field"?, "limit"?}}`.
///
/// Causes of 5xx are logged where the error is made, never sent.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    hint: Option<Hint>,
    body: ErrorBody,
}

/// A header that says what to do about it.
#[derive(Debug, Clone, Copy)]
enum Hint {
    RetryAfterSecs(u32),
    /// Send bodies as they are.
    NoEncoding,
}

#[derive(Debug, Serialize)]
struct Envelope {
    error: ErrorBody,
}

#[derive(Debug, Serialize)]
struct ErrorBody {
    code: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        let message = clip(message.to_string(), MAX_MESSAGE_BYTES);
        let body = ErrorBody { code, message, field: None, limit: None };
        Self { status, hint: None, body }
    }

    /// A field of the body that is missing, of the wrong type or over a limit.
    pub(crate) fn field(code: &'static str, field: &str, message: impl ToString) -> Self {
        let field = clip(field.to_owned(), MAX_FIELD_BYTES);
        let message = format!("{field}: {}", message.to_string());
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message);
        error.body.field = Some(field);
        error
    }

    /// The same, naming the limit that was crossed.
    pub(crate) fn with_limit(mut self, limit: usize) -> Self {
        self.body.limit = Some(limit);
        self
    }

    fn with_retry_after(mut self, secs: u32) -> Self {
        self.hint = Some(Hint::RetryAfterSecs(secs));
        self
    }

    /// This process has no room for more than what it holds or answers now; another may.
    pub(crate) fn overloaded(message: impl ToString, limit: usize) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
            .with_limit(limit)
            .with_retry_after(1)
    }

    pub(crate) fn uri_too_long(max_uri_bytes: usize) -> Self {
        let message = format!("the URI is over the limit of {max_uri_bytes} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "uri_too_long", message).with_limit(max_uri_bytes)
    }

    /// The body is compressed.
    pub(crate) fn unsupported_encoding() -> Self {
        let message = "send the body as it is: content-encoding may only be identity";
        let mut error =
            Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message);
        error.hint = Some(Hint::NoEncoding);
        error
    }

    pub(crate) fn slow_body(limit: Duration) -> Self {
        let message = format!("the body did not arrive within {} ms", limit.as_millis());
        Self::new(StatusCode::REQUEST_TIMEOUT, "slow_body", message)
    }

    pub(crate) fn timeout(limit: Duration) -> Self {
        let message = format!("no answer within {} ms", limit.as_millis());
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    pub(crate) fn loading() -> Self {
        let message = "the model is still loading";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading", message).with_retry_after(1)
    }

    pub(crate) fn shutting_down() -> Self {
        let message = "this instance is shutting down";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message).with_retry_after(1)
    }
}

impl From<&LoadFailure> for ApiError {
    fn from(_: &LoadFailure) -> Self {
        let message = "the model could not be loaded";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", message)
    }
}

impl ApiError {
    /// What the caller is told of `error`; `field` names the text of an index.
    pub(crate) fn of_pipeline(error: &PipelineError, field: impl Fn(usize) -> String) -> Self {
        match error {
            PipelineError::QueueFull { max_queue_requests } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", error)
                    .with_limit(*max_queue_requests)
                    .with_retry_after(1)
            }
            PipelineError::TooManyTokens { index, max_input_tokens } => {
                Self::field("too_long", &field(*index), error).with_limit(*max_input_tokens)
            }
            PipelineError::TopK { num_labels, .. } => {
                Self::field("out_of_range", "top_k", error).with_limit(*num_labels)
            }
            PipelineError::Dimensions { hidden_size, .. } => {
                Self::field("out_of_range", "dimensions", error).with_limit(*hidden_size)
            }
            PipelineError::Prompt { .. } => Self::field("unknown_prompt", "prompt_name", error),
            _ => {
                tracing::error!(error = %Causes(error), "no answer");
                let message = "the model could not answer";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let envelope = Envelope { error: self.body };
        let mut response = (self.status, Json(envelope)).into_response();
        match self.hint {
            Some(Hint::RetryAfterSecs(secs)) => {
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(secs));
            }
            Some(Hint::NoEncoding) => {
                let value = HeaderValue::from_static("identity");
                response.headers_mut().insert(ACCEPT_ENCODING, value);
            }
            None => {}
        }
        response
    }
}

/// `text` up to `max_bytes`, and a sign that there is more.
fn clip(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
        text.push('…');
    }
    text
}
