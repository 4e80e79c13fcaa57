//! `POST /predict`: the most probable labels of a text.
//!
//! ```text
//! {"text": "…", "top_k": 1}  ->  [{"label": "POSITIVE", "score": 0.9998}]
//! ```
//!
//! `x-compute-tokens` says how many tokens the model read; `x-truncated: true` that a part of the
//! text was cut off before.

use axum::{
    Json, Router,
    extract::{Request, State},
    http::HeaderValue,
    response::{IntoResponse, Response},
    routing::post,
};
use pipeline::{Classification, Classifier};
use serde::{Deserialize, Serialize};

use super::Endpoint;
use crate::{error::ApiError, json};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PredictRequest {
    text: Option<String>,
    top_k: Option<usize>,
}

#[derive(Debug, Serialize)]
struct LabelScore {
    label: String,
    score: f32,
}

/// The routes of text classification.
pub fn routes(endpoint: Endpoint<Classifier>) -> Router {
    Router::new().route("/predict", post(predict)).with_state(endpoint)
}

async fn predict(
    State(endpoint): State<Endpoint<Classifier>>,
    request: Request,
) -> Result<Response, ApiError> {
    let request: PredictRequest = json::read(request, endpoint.max_body_bytes).await?;
    let (text, top_k) = request.check(endpoint.max_input_chars)?;
    let classification = endpoint.model.ready().await?.classify(text, top_k).await?;
    Ok(answer(classification))
}

impl PredictRequest {
    /// The text and `top_k`, within the limits that hold for every model.
    fn check(self, max_input_chars: usize) -> Result<(String, usize), ApiError> {
        let Some(text) = self.text else {
            return Err(ApiError::field("missing_field", "text", "a string is required"));
        };
        if text.trim().is_empty() {
            return Err(ApiError::field("empty", "text", "is empty"));
        }
        let num_chars = text.chars().count();
        if num_chars > max_input_chars {
            let message = format!("has {num_chars} characters, limit is {max_input_chars}");
            return Err(ApiError::field("too_long", "text", message).with_limit(max_input_chars));
        }
        match self.top_k.unwrap_or(1) {
            0 => Err(ApiError::field("out_of_range", "top_k", "0 is below 1").with_limit(1)),
            top_k => Ok((text, top_k)),
        }
    }
}

fn answer(classification: Classification) -> Response {
    let Classification { labels, num_tokens, truncated } = classification;
    let labels =
        labels.into_iter().map(|ranked| LabelScore { label: ranked.label, score: ranked.score });
    let mut response = Json(labels.collect::<Vec<_>>()).into_response();
    let headers = response.headers_mut();
    headers.insert("x-compute-tokens", HeaderValue::from(num_tokens));
    if truncated {
        headers.insert("x-truncated", HeaderValue::from_static("true"));
    }
    response
}
