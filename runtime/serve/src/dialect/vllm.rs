//! vLLM's additions to OpenAI's API: classification.
//!
//! ```text
//! POST /v1/classify  {"model": "…", "input": "…"}
//!   ->  {"id": "classify-…", "object": "list", "created", "model",
//!        "data": [{"index", "label", "probs", "num_classes"}], "usage"}
//! ```
//!
//! Source: <https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html>

use std::time::{SystemTime, UNIX_EPOCH};

use pipeline::{Classifier, ClassifyOptions, Pipeline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::{Dialect::Vllm, inputs::Inputs, openai::TokenUsage};
use crate::{
    answer::Answer,
    endpoint::Endpoint,
    error::ApiError,
    routes::{Operation, Routes},
};

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let classify = Operation::post(Vllm, "/v1/classify", "The label of each text.", classify)
        .example("text", json!({ "model": "predict", "input": "What a film!" }));
    routes.with(classify)
}

/// Texts to classify.
#[derive(Debug, Deserialize, JsonSchema)]
struct ClassifyRequest {
    input: Inputs,
    /// Any name: a function has one model.
    #[serde(default)]
    #[expect(dead_code, reason = "any name will do")]
    model: Option<String>,
}

/// The label of each text.
#[derive(Debug, Serialize, JsonSchema)]
struct ClassifyAnswer {
    id: String,
    object: &'static str,
    /// In seconds since 1970.
    created: u64,
    /// The model that answered.
    model: String,
    data: Vec<Classification>,
    usage: TokenUsage,
}

/// The label of a text.
#[derive(Debug, Serialize, JsonSchema)]
struct Classification {
    index: usize,
    /// The most probable one.
    label: String,
    /// Of all labels, in the model's order.
    probs: Vec<f32>,
    num_classes: usize,
}

async fn classify(
    endpoint: Endpoint<Classifier>,
    request: ClassifyRequest,
) -> Result<Answer<ClassifyAnswer>, ApiError> {
    let texts = request.input.texts("input");
    let classified = endpoint.predict(texts, ClassifyOptions::default()).await?;
    let rows = classified.rows.into_iter().enumerate();
    let data = rows.map(|(index, mut labels)| {
        let label = labels.first().map(|best| best.label.clone()).unwrap_or_default();
        labels.sort_by_key(|label| label.index);
        let probs: Vec<f32> = labels.iter().map(|label| label.score).collect();
        Classification { index, label, num_classes: probs.len(), probs }
    });
    let created = SystemTime::now().duration_since(UNIX_EPOCH);
    let answer = ClassifyAnswer {
        id: format!("classify-{}", Uuid::new_v4().simple()),
        object: "list",
        created: created.map_or(0, |since| since.as_secs()),
        model: endpoint.pipeline().await?.model().name.to_string(),
        data: data.collect(),
        usage: classified.usage.into(),
    };
    Ok(Answer::new(answer, classified.usage))
}
