//! Every failure as data: what happened, who has to act, when to come back. The dialect of the
//! caller turns it into an answer.

use std::{borrow::Cow, time::Duration};

use admission::{AuthError, LimitError, Standing};
use axum::{
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{ACCEPT_ENCODING, ALLOW, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use pipeline::PipelineError;
use telemetry::Causes;

use crate::{dialect::Dialect, model::Failure};

/// Longest message and field name in an error, in bytes: they may quote the caller.
const MAX_MESSAGE_BYTES: usize = 512;
const MAX_FIELD_BYTES: usize = 64;

/// When to come back to what is busy, starting or stopping.
const A_MOMENT: Duration = Duration::from_secs(1);

const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// An error as the caller is told of it, in the envelope of its dialect.
///
/// Causes of 5xx are logged where the error is made, never sent.
#[derive(Debug, Clone)]
pub struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) field: Option<String>,
    pub(crate) limit: Option<usize>,
    /// Whose envelope it gets; `None`: the one of its path.
    pub(crate) dialect: Option<Dialect>,
    hint: Option<Box<Hint>>,
    standing: Option<Box<Standing>>,
}

/// A header that says what to do about it.
#[derive(Debug, Clone)]
enum Hint {
    RetryAfter(Duration),
    /// Which token is wanted, and what is wrong with the one that was sent.
    Challenge(HeaderValue),
    /// Send bodies as they are.
    NoEncoding,
    /// The methods that there are.
    Allow(&'static str),
}

impl ApiError {
    /// An error with `status` and a `code` for programs, such as `too_long`.
    pub fn new(
        status: StatusCode,
        code: impl Into<Cow<'static, str>>,
        message: impl ToString,
    ) -> Self {
        let message = clip(message.to_string(), MAX_MESSAGE_BYTES);
        let code = code.into();
        Self {
            status,
            code,
            message,
            field: None,
            limit: None,
            dialect: None,
            hint: None,
            standing: None,
        }
    }

    /// A field of the body that is missing, of the wrong type or over a limit.
    pub fn field(code: impl Into<Cow<'static, str>>, field: &str, message: impl ToString) -> Self {
        let field = clip(field.to_owned(), MAX_FIELD_BYTES);
        let message = format!("{field}: {}", message.to_string());
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message);
        error.field = Some(field);
        error
    }

    /// A field that has to be there.
    pub(crate) fn missing(field: &str) -> Self {
        Self::field("missing_field", field, "is required")
    }

    /// The same, naming the limit that was crossed.
    #[must_use]
    pub fn with_limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The same, in an envelope that its path does not tell.
    pub(crate) fn in_dialect(mut self, dialect: Dialect) -> Self {
        self.dialect.get_or_insert(dialect);
        self
    }

    fn with_retry_after(mut self, wait: Duration) -> Self {
        self.hint = Some(Box::new(Hint::RetryAfter(wait)));
        self
    }

    /// The same, with how the caller stands, if it has a limit.
    pub(crate) fn with_standing(mut self, standing: Option<Standing>) -> Self {
        self.standing = standing.map(Box::new);
        self
    }

    /// This process has no room for more than what it holds or answers now; another may.
    pub(crate) fn overloaded(message: impl ToString, limit: usize) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message)
            .with_limit(limit)
            .with_retry_after(A_MOMENT)
    }

    pub(crate) fn body_too_large(max_body_bytes: usize) -> Self {
        let message = format!("the body is over the limit of {max_body_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
            .with_limit(max_body_bytes)
    }

    pub(crate) fn uri_too_long(max_uri_bytes: usize) -> Self {
        let message = format!("the URI is over the limit of {max_uri_bytes} bytes");
        Self::new(StatusCode::URI_TOO_LONG, "uri_too_long", message).with_limit(max_uri_bytes)
    }

    /// What the path's percent signs stand for is not UTF-8.
    pub(crate) fn invalid_path() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_path", "the path has to be UTF-8")
    }

    /// The body is compressed.
    pub(crate) fn unsupported_encoding() -> Self {
        let message = "send the body as it is: content-encoding may only be identity";
        let mut error =
            Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message);
        error.hint = Some(Box::new(Hint::NoEncoding));
        error
    }

    pub(crate) fn unsupported_type(wanted: &str) -> Self {
        let message = format!("send the body as content-type: {wanted}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_type", message)
    }

    /// The path takes only `allowed`, and says so itself.
    pub(crate) fn method_not_allowed(allowed: &'static str) -> Self {
        let message = format!("the path takes {allowed}");
        let mut error = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        error.hint = Some(Box::new(Hint::Allow(allowed)));
        error
    }

    pub(crate) fn no_such_model(name: &str) -> Self {
        Self::not_found("model_not_found", format!("there is no model {name:?}"))
    }

    pub(crate) fn not_found(code: &'static str, message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, message)
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
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "loading", message).with_retry_after(A_MOMENT)
    }

    pub(crate) fn shutting_down() -> Self {
        let message = "this instance is shutting down";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message)
            .with_retry_after(A_MOMENT)
    }

    pub(crate) fn internal() -> Self {
        let message = "the model could not answer";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", message)
    }

    /// What is wrong with the token that a caller sends to `function`, as RFC 6750 says it.
    pub(crate) fn of_auth(error: AuthError, function: &str) -> Self {
        use StatusCode as S;
        let (status, code, challenge) = match error {
            AuthError::Missing => (S::UNAUTHORIZED, "unauthenticated", String::new()),
            AuthError::Expired => {
                (S::UNAUTHORIZED, "token_expired", invalid_token("token expired"))
            }
            AuthError::Forbidden => {
                (S::FORBIDDEN, "forbidden", r#", error="insufficient_scope""#.to_owned())
            }
            AuthError::KeysUnavailable => {
                return Self::new(S::SERVICE_UNAVAILABLE, "keys_unavailable", error)
                    .with_retry_after(A_MOMENT);
            }
            _ => (S::UNAUTHORIZED, "invalid_token", invalid_token("invalid token")),
        };
        Self::new(status, code, error).with_challenge(function, &challenge)
    }

    /// The caller has said twice who it is.
    pub(crate) fn two_tokens(function: &str) -> Self {
        let message = "authorization stands there twice";
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
            .with_challenge(function, r#", error="invalid_request""#)
    }

    fn with_challenge(mut self, function: &str, more: &str) -> Self {
        let challenge = format!("Bearer realm=\"{function}\"{more}");
        self.hint = HeaderValue::try_from(challenge).ok().map(Hint::Challenge).map(Box::new);
        self
    }

    /// The caller has asked for more than it may, or nobody knows.
    pub(crate) fn of_limit(error: LimitError) -> Self {
        match error {
            LimitError::Exceeded { standing, retry_after } => {
                let limit = usize::try_from(standing.limit).unwrap_or(usize::MAX);
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", error)
                    .with_limit(limit)
                    .with_retry_after(retry_after)
                    .with_standing(Some(standing))
            }
            _ => Self::new(StatusCode::SERVICE_UNAVAILABLE, "limits_unavailable", error)
                .with_retry_after(A_MOMENT),
        }
    }

    /// What the caller is told of `error`; `field` names the text of an index.
    pub(crate) fn of_pipeline(error: &PipelineError, field: impl Fn(usize) -> String) -> Self {
        match error {
            PipelineError::QueueFull { max_queue_requests } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", error)
                    .with_limit(*max_queue_requests)
                    .with_retry_after(A_MOMENT)
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
                tracing::error!(exception = %Causes(error), "no answer");
                match error {
                    PipelineError::Lost(_) => Self::model_unavailable(error),
                    _ => Self::internal(),
                }
            }
        }
    }

    fn model_unavailable(message: impl ToString) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "model_unavailable", message)
    }
}

impl From<&Failure> for ApiError {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Load(_) => Self::model_unavailable("the model could not be loaded"),
            Failure::Lost => Self::model_unavailable(failure),
        }
    }
}

impl From<PipelineError> for ApiError {
    fn from(error: PipelineError) -> Self {
        Self::of_pipeline(&error, |index| format!("text {index}"))
    }
}

impl IntoResponse for ApiError {
    /// Status and headers; the edge gives it the body, by its dialect.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        let headers = response.headers_mut();
        match self.hint.as_deref() {
            Some(Hint::RetryAfter(wait)) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(whole_secs(*wait)));
                let millis = wait.as_micros().div_ceil(1000) as u64;
                headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
            }
            Some(Hint::Challenge(challenge)) => {
                headers.insert(WWW_AUTHENTICATE, challenge.clone());
            }
            Some(Hint::NoEncoding) => {
                headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            Some(Hint::Allow(methods)) => {
                headers.insert(ALLOW, HeaderValue::from_static(methods));
            }
            None => {}
        }
        write_standing(headers, self.standing.as_deref().copied());
        response.extensions_mut().insert(self);
        response
    }
}

fn invalid_token(description: &str) -> String {
    format!(r#", error="invalid_token", error_description="{description}""#)
}

/// How a caller stands, as draft-ietf-httpapi-ratelimit-headers-06 has it; times in whole seconds.
pub(crate) fn write_standing(headers: &mut HeaderMap, standing: Option<Standing>) {
    let Some(standing) = standing else { return };
    let numbers = [
        ("ratelimit-limit", standing.limit),
        ("ratelimit-remaining", standing.remaining),
        ("ratelimit-reset", whole_secs(standing.reset)),
    ];
    for (name, number) in numbers {
        headers.insert(HeaderName::from_static(name), HeaderValue::from(number));
    }
}

fn whole_secs(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// `text` up to `max_bytes`, and a sign that there is more.
fn clip(mut text: String, max_bytes: usize) -> String {
    if text.len() > max_bytes {
        text.truncate(text.floor_char_boundary(max_bytes));
        text.push('…');
    }
    text
}
