//! The body of a request as a typed value, within its limit.

use std::error::Error;

use axum::{
    body::Body,
    http::{HeaderMap, Request, StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use telemetry::Causes;

use crate::error::ApiError;

/// Reads a JSON body of at most `max_body_bytes`.
pub(crate) async fn read<T: DeserializeOwned>(
    request: Request<Body>,
    max_body_bytes: usize,
) -> Result<T, ApiError> {
    let (parts, body) = request.into_parts();
    if !is_json(&parts.headers) {
        let message = "send the body as content-type: application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_type", message));
    }
    let too_large = || {
        let message = format!("the body is over the limit of {max_body_bytes} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
            .with_limit(max_body_bytes)
    };
    if declared_length(&parts.headers).is_some_and(|length| length > max_body_bytes) {
        return Err(too_large());
    }
    let bytes = match Limited::new(body, max_body_bytes).collect().await {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(too_large()),
        Err(error) => return Err(unreadable(error)),
    };
    parse(&bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // Serde would take an array as the fields of a struct, one by one.
    if bytes.trim_ascii_start().starts_with(b"[") {
        let message = "the body is an array, not an object";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", message));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let cause = error.into_inner();
        match (cause.classify(), field.as_str()) {
            (serde_json::error::Category::Data, ".") => {
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", cause)
            }
            (serde_json::error::Category::Data, field) => {
                ApiError::field("invalid_field", field, cause)
            }
            _ => invalid_json(&cause),
        }
    })?;
    deserializer.end().map_err(|error| invalid_json(&error))?;
    Ok(value)
}

fn invalid_json(error: &serde_json::Error) -> ApiError {
    let message = format!("the body is not JSON: {error}");
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", message)
}

fn unreadable(error: Box<dyn Error + Send + Sync>) -> ApiError {
    tracing::debug!(error = %Causes(&*error), "body cut off");
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "unreadable_body",
        "the body could not be read to its end",
    )
}

/// `application/json` or `application/…+json`, whatever its parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    let essence = essence.trim().to_ascii_lowercase();
    essence
        .strip_prefix("application/")
        .is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

fn declared_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
