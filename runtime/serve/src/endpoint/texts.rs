//! What the endpoints ask of texts, and say of them.

use axum::{
    Json,
    http::HeaderValue,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// One text, or several: `"…"` or `["…", "…"]`.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string or an array of strings is required")]
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
}

/// The name of text `index` of the array `field`.
pub(super) fn place(field: &str, index: usize) -> String {
    format!("{field}[{index}]")
}

/// The text that `field` has, within the limits that hold for every model.
pub(super) fn check_text(
    field: &str,
    text: Option<String>,
    max_input_chars: usize,
) -> Result<String, ApiError> {
    let Some(text) = text else {
        return Err(ApiError::field("missing_field", field, "a string is required"));
    };
    if text.trim().is_empty() {
        return Err(ApiError::field("empty", field, "is empty"));
    }
    let num_chars = text.chars().count();
    if num_chars > max_input_chars {
        let message = format!("has {num_chars} characters, limit is {max_input_chars}");
        return Err(ApiError::field("too_long", field, message).with_limit(max_input_chars));
    }
    Ok(text)
}

/// The texts that the array `field` has, as [`check_text`] wants each of them.
pub(super) fn check_texts(
    field: &str,
    texts: Vec<String>,
    max_client_batch_size: usize,
    max_input_chars: usize,
) -> Result<Vec<String>, ApiError> {
    if texts.is_empty() {
        return Err(ApiError::field("empty", field, "is empty"));
    }
    let count = texts.len();
    if count > max_client_batch_size {
        let message = format!("has {count} texts, limit is {max_client_batch_size}");
        return Err(ApiError::field("too_many", field, message).with_limit(max_client_batch_size));
    }
    let texts = texts.into_iter().enumerate();
    let check = |(index, text)| check_text(&place(field, index), Some(text), max_input_chars);
    texts.map(check).collect()
}

/// `body`, with how many tokens the model read and whether a part of a text was cut off before.
pub(super) fn answer(body: impl Serialize, num_tokens: usize, truncated: bool) -> Response {
    let mut response = Json(body).into_response();
    let headers = response.headers_mut();
    headers.insert("x-compute-tokens", HeaderValue::from(num_tokens));
    if truncated {
        headers.insert("x-truncated", HeaderValue::from_static("true"));
    }
    response
}
