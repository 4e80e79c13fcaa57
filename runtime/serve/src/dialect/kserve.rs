//! KServe's first protocol.
//!
//! ```text
//! POST /v1/models/{model}:predict  {"instances": ["…", …]}  ->  {"predictions": […]}
//! ```
//!
//! An instance is a text, or an object with it: `{"text"}`, and for `rerank` `{"query", "text"}`. The
//! models are listed by [`openai`](super::openai), whose path is the same.
//!
//! Source: <https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol>

use pipeline::{Classifier, ClassifyOptions, EmbedOptions, Embedder, Reranker, Text};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Dialect::KServe,
    inputs::{LabelScore, Many, OneText, TextItem, labels},
};
use crate::{
    answer::Answer,
    endpoint::{Endpoint, Texts},
    error::ApiError,
    json::Object,
    routes::{Operation, Routes},
};

const PATH: &str = "/v1/models/{model}:predict";

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let predict = Operation::post(KServe, PATH, "The most probable label of each text.", classify);
    routes.with(predict.example("texts", example()))
}

pub(crate) fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    let embed = Operation::post(KServe, PATH, "A vector for each text.", vectors);
    routes.with(embed.example("texts", example()))
}

pub(crate) fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    let score = Operation::post(KServe, PATH, "How well each text answers its query.", scores);
    routes.with(score.example(
        "pairs",
        json!({ "instances": [{ "query": "Which city?", "text": "Paris is a city." }] }),
    ))
}

fn example() -> serde_json::Value {
    json!({ "instances": ["What a film!", { "text": "It never starts." }] })
}

/// Texts.
#[derive(Debug, Deserialize, JsonSchema)]
struct TextInstances {
    #[schemars(with = "Many<TextItem>")]
    instances: Vec<TextItem>,
}

impl TextInstances {
    fn texts(self) -> Texts {
        Texts::many("instances", self.instances.into_iter().map(TextItem::into_text).collect())
    }
}

/// Queries, each with a text.
#[derive(Debug, Deserialize, JsonSchema)]
struct PairInstances {
    #[schemars(with = "Many<PairInstance>")]
    instances: Vec<Object<PairInstance>>,
}

/// A query with a text.
#[derive(Debug, Deserialize, JsonSchema)]
struct PairInstance {
    #[schemars(with = "OneText")]
    query: String,
    #[schemars(with = "OneText")]
    text: String,
}

/// One for each instance.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}Predictions")]
struct Predictions<T> {
    predictions: Vec<T>,
}

async fn classify(
    endpoint: Endpoint<Classifier>,
    request: TextInstances,
) -> Result<Answer<Predictions<LabelScore>>, ApiError> {
    let options = ClassifyOptions { top_k: Some(1), ..ClassifyOptions::default() };
    let classified = endpoint.predict(request.texts(), options).await?;
    let predictions = labels(classified.rows).into_iter().flatten().collect();
    Ok(Answer::new(Predictions { predictions }, classified.usage))
}

async fn vectors(
    endpoint: Endpoint<Embedder>,
    request: TextInstances,
) -> Result<Answer<Predictions<Vec<f32>>>, ApiError> {
    let embedded = endpoint.embed(request.texts(), EmbedOptions::default()).await?;
    Ok(Answer::new(Predictions { predictions: embedded.rows }, embedded.usage))
}

async fn scores(
    endpoint: Endpoint<Reranker>,
    request: PairInstances,
) -> Result<Answer<Predictions<f32>>, ApiError> {
    let pairs = request.instances.into_iter();
    let pairs = pairs.map(|Object(pair)| Text::Pair(pair.query.into(), pair.text));
    let pairs = Texts::many("instances", pairs.collect());
    let (predictions, usage) = endpoint.score(pairs, false, None).await?;
    Ok(Answer::new(Predictions { predictions }, usage))
}
