//! `POST /embed`: a vector for each text.
//!
//! ```text
//! {"inputs": ["…"], "normalize": true, "dimensions": 128, "prompt_name": "query"}
//!   ->  [[0.013, -0.052, …]]
//! ```
//!
//! `inputs` is one text or several; the answer has a vector each either way. `x-compute-tokens` says
//! how many tokens the model read; `x-truncated: true` that a part of a text was cut off before.

use axum::{
    Router,
    extract::{Request, State},
    response::Response,
    routing::post,
};
use pipeline::{EmbedOptions, Embedder};
use serde::Deserialize;

use super::{
    Endpoint,
    texts::{self, Texts},
};
use crate::{error::ApiError, json};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmbedRequest {
    inputs: Option<Texts>,
    normalize: Option<bool>,
    dimensions: Option<usize>,
    prompt_name: Option<String>,
}

/// The routes of sentence embeddings.
pub fn routes(endpoint: Endpoint<Embedder>) -> Router {
    Router::new().route("/embed", post(embed)).with_state(endpoint)
}

async fn embed(
    State(endpoint): State<Endpoint<Embedder>>,
    request: Request,
) -> Result<Response, ApiError> {
    let request: EmbedRequest = json::read(request, endpoint.max_body_bytes).await?;
    let Endpoint { max_client_batch_size, max_input_chars, .. } = endpoint;
    let (inputs, is_one) = match request.inputs {
        None => {
            let message = "a string or an array of strings is required";
            return Err(ApiError::field("missing_field", "inputs", message));
        }
        Some(Texts::One(text)) => {
            (vec![texts::check_text("inputs", Some(text), max_input_chars)?], true)
        }
        Some(Texts::Many(inputs)) => {
            (texts::check_texts("inputs", inputs, max_client_batch_size, max_input_chars)?, false)
        }
    };
    if request.dimensions == Some(0) {
        return Err(ApiError::field("out_of_range", "dimensions", "0 is below 1").with_limit(1));
    }
    let options = EmbedOptions {
        normalize: request.normalize.unwrap_or(true),
        dimensions: request.dimensions,
        prompt_name: request.prompt_name,
    };
    let embeddings = endpoint.model.ready().await?.embed(inputs, options).await;
    let embeddings = embeddings.map_err(|error| {
        ApiError::of_pipeline(&error, |index| match is_one {
            true => "inputs".to_owned(),
            false => texts::place("inputs", index),
        })
    })?;
    Ok(texts::answer(embeddings.rows, embeddings.num_tokens, embeddings.truncated))
}
