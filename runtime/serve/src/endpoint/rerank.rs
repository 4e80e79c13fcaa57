//! `POST /rerank`: texts in the order in which they answer a query.
//!
//! ```text
//! {"query": "…", "texts": ["…", "…"], "raw_scores": false, "return_text": false}
//!   ->  [{"index": 1, "score": 0.98}, {"index": 0, "score": 0.02}]
//! ```
//!
//! `x-compute-tokens` says how many tokens the model read; `x-truncated: true` that a part of a text,
//! or of the query, was cut off before.

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::post,
};
use pipeline::Reranker;
use serde::{Deserialize, Serialize};

use super::{Endpoint, texts};
use crate::{error::ApiError, json};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RerankRequest {
    query: Option<String>,
    texts: Option<Vec<String>>,
    raw_scores: Option<bool>,
    return_text: Option<bool>,
}

#[derive(Debug, Serialize)]
struct RankedText {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// The routes of reranking.
pub fn routes(endpoint: Endpoint<Reranker>) -> Router {
    Router::new().route("/rerank", post(rerank)).with_state(endpoint)
}

async fn rerank(
    State(endpoint): State<Endpoint<Reranker>>,
    request: Request,
) -> Result<Response, ApiError> {
    let request: RerankRequest = json::read(request, endpoint.max_body_bytes).await?;
    let Endpoint { max_client_batch_size, max_input_chars, .. } = endpoint;
    let query = texts::check_text("query", request.query, max_input_chars)?;
    let Some(texts) = request.texts else {
        let message = "an array of strings is required";
        return Err(ApiError::field("missing_field", "texts", message));
    };
    let texts = texts::check_texts("texts", texts, max_client_batch_size, max_input_chars)?;
    let mut returned: Vec<Option<String>> = match request.return_text.unwrap_or(false) {
        true => texts.iter().cloned().map(Some).collect(),
        false => vec![None; texts.len()],
    };
    let raw_scores = request.raw_scores.unwrap_or(false);
    let ranking = endpoint.model.ready().await?.rerank(query, texts, raw_scores).await;
    let ranking = ranking
        .map_err(|error| ApiError::of_pipeline(&error, |index| texts::place("texts", index)))?;
    let ranked = ranking.scores.iter().map(|text| RankedText {
        index: text.index,
        score: text.score,
        text: returned[text.index].take(),
    });
    let ranked: Vec<RankedText> = ranked.collect();
    Ok(texts::answer(ranked, ranking.num_tokens, ranking.truncated))
}
