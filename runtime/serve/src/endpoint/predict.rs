//! `POST /predict`: the most probable labels of a text.
//!
//! ```text
//! {"text": "…", "top_k": 1}  ->  [{"label": "POSITIVE", "score": 0.9998}]
//! ```
//!
//! `x-compute-tokens` says how many tokens the model read; `x-truncated: true` that a part of the
//! text was cut off before.

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::post,
};
use pipeline::Classifier;
use serde::{Deserialize, Serialize};

use super::{Endpoint, texts};
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
    let text = texts::check_text("text", request.text, endpoint.max_input_chars)?;
    let top_k = request.top_k.unwrap_or(1);
    if top_k == 0 {
        return Err(ApiError::field("out_of_range", "top_k", "0 is below 1").with_limit(1));
    }
    let classifier = endpoint.model.ready().await?;
    let classification = classifier.classify(text, top_k).await;
    let classification =
        classification.map_err(|error| ApiError::of_pipeline(&error, |_| "text".to_owned()))?;
    let labels = classification.labels.into_iter();
    let labels = labels.map(|ranked| LabelScore { label: ranked.label, score: ranked.score });
    let labels: Vec<LabelScore> = labels.collect();
    Ok(texts::answer(labels, classification.num_tokens, classification.truncated))
}
