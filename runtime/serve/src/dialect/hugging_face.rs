//! Hugging Face's inference API, as its clients speak it to the exact URL they are given.
//!
//! ```text
//! POST /  {"inputs": "…", "parameters": {"top_k": 2}}           ->  [[{"label", "score"}]]
//! POST /  {"inputs": "…"}                                       ->  [[0.013, -0.052, …]]
//! POST /  {"inputs": {"source_sentence": "…", "sentences": […]}}  ->  [0.98, …]
//! ```
//!
//! Nested even for one text. Parameters may stand beside `inputs` too.
//!
//! Source: <https://huggingface.co/docs/inference-providers/tasks/index>

use std::collections::BTreeMap;

use pipeline::{Classifications, Classifier, ClassifyOptions, Embedder, Reranker, Scores};
use schemars::JsonSchema;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;

use super::{
    Dialect::HuggingFace,
    inputs::{Direction, Inputs, LabelScore, TopK, labels, truncation},
    tei,
};
use crate::{
    answer::Answer,
    endpoint::Endpoint,
    error::ApiError,
    json::{Object, Whole},
    routes::{Operation, Routes},
};

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let predict = Operation::post(HuggingFace, "/", "All labels of texts.", classify)
        .example("one text", json!({ "inputs": "What a film!", "parameters": { "top_k": 1 } }))
        .example("several", json!({ "inputs": ["What a film!", "It never starts."] }));
    routes.with(predict)
}

pub(crate) fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    let compare =
        Operation::post(HuggingFace, "/", "How close sentences are to another.", tei::similarity);
    let embed = Operation::post(HuggingFace, "/", "A vector for each text.", tei::vectors);
    routes
        .with(compare.fits(has_sentences).example("sentences", tei::similarity_example()))
        .with(embed.example("text", json!({ "inputs": "What a film!" })))
}

/// Whether `inputs` is an object, not a text or texts.
fn has_sentences(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Keys {
        #[expect(dead_code, reason = "its type is all that counts")]
        inputs: BTreeMap<String, IgnoredAny>,
    }
    serde_json::from_slice::<Keys>(body).is_ok()
}

pub(crate) fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    let summary = "Texts by how well they answer a query.";
    let rerank = Operation::post(HuggingFace, "/", summary, tei::ranked);
    routes.with(rerank.example("texts", tei::rerank_example()))
}

/// Texts to classify.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct ClassificationRequest {
    inputs: Inputs,
    /// They may stand beside `inputs` as well, where they count if they do not stand here.
    #[serde(default)]
    parameters: Option<Object<ClassificationParameters>>,
    #[serde(flatten)]
    #[schemars(skip)]
    beside: ClassificationParameters,
}

/// How texts are classified.
#[derive(Debug, Default, Deserialize, JsonSchema)]
struct ClassificationParameters {
    /// How many labels, best first; all unless it is set.
    #[serde(default)]
    #[schemars(with = "TopK")]
    top_k: Option<Whole<usize>>,
    /// How logits become scores.
    #[serde(default)]
    function_to_apply: Option<Function>,
    /// Whether a text of too many tokens is cut, not refused; the function's setting unless it is
    /// set.
    #[serde(default)]
    truncate: Option<bool>,
    /// Which end is cut off.
    #[serde(default)]
    truncation_direction: Option<Direction>,
}

/// How logits become scores.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Function {
    Sigmoid,
    Softmax,
    None,
}

async fn classified(
    endpoint: &Endpoint<Classifier>,
    request: ClassificationRequest,
) -> Result<Classifications, ApiError> {
    let beside = request.beside;
    let Object(parameters) = request.parameters.unwrap_or_default();
    let function = parameters.function_to_apply.or(beside.function_to_apply);
    let options = ClassifyOptions {
        top_k: parameters.top_k.or(beside.top_k).map(|Whole(top_k)| top_k),
        scores: function.map(|function| match function {
            Function::Sigmoid => Scores::Sigmoid,
            Function::Softmax => Scores::Softmax,
            Function::None => Scores::Logits,
        }),
        truncation: truncation(
            parameters.truncate.or(beside.truncate),
            parameters.truncation_direction.or(beside.truncation_direction),
        ),
    };
    endpoint.predict(request.inputs.texts("inputs"), options).await
}

async fn classify(
    endpoint: Endpoint<Classifier>,
    request: ClassificationRequest,
) -> Result<Answer<Vec<Vec<LabelScore>>>, ApiError> {
    let classified = classified(&endpoint, request).await?;
    Ok(Answer::new(labels(classified.rows), classified.usage))
}

/// The same, flat for one text.
pub(super) async fn classify_flat(
    endpoint: Endpoint<Classifier>,
    request: ClassificationRequest,
) -> Result<Answer<tei::TeiPredictAnswer>, ApiError> {
    let are_many = matches!(request.inputs, Inputs::Many(_));
    let classified = classified(&endpoint, request).await?;
    let answer = tei::answer_of(labels(classified.rows), are_many);
    Ok(Answer::new(answer, classified.usage))
}
