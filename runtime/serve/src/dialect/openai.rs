//! OpenAI's API: embeddings and models.
//!
//! ```text
//! POST /v1/embeddings  {"input": …, "model": "…", "encoding_format": "base64"}
//!   ->  {"object": "list", "data": [{"object": "embedding", "index", "embedding"}], "model", "usage"}
//! GET  /v1/models      ->  {"object": "list", "data": [{"id", "object": "model", …}], "models": ["…"]}
//! ```
//!
//! Any model name is taken, and the answer has the real one: clients have names of other models built
//! in. `GET /v1/models` and `GET /v1/models/{model}` answer KServe's clients as well.
//!
//! Source: <https://platform.openai.com/docs/api-reference/embeddings>

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use pipeline::{EmbedOptions, Embedder, Pipeline, Usage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Dialect::OpenAi,
    inputs::{Dimensions, Inputs},
    tei,
};
use crate::{
    answer::Answer,
    endpoint::{Endpoint, Texts},
    error::ApiError,
    json::Whole,
    model::State,
    routes::{Call, Operation, Routes},
};

/// Who the models are said to belong to.
const OWNER: &str = "sanderling";

/// What every function has.
pub(crate) fn every<P: Pipeline>(routes: Routes<P>) -> Routes<P> {
    routes
        .with(Operation::get::<Models, _, _>(
            OpenAi,
            "/v1/models",
            "The model of this function.",
            models,
        ))
        .with(Operation::get::<Model, _, _>(
            OpenAi,
            "/v1/models/{model}",
            "Whether the model can answer.",
            model,
        ))
}

pub(crate) fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    let embed = Operation::post(OpenAi, "/v1/embeddings", "A vector for each text.", vectors)
        .example("one text", json!({ "model": "embed", "input": "What a film!" }))
        .example(
            "base64",
            json!({
                "model": "embed",
                "input": ["What a film!", "It rains."],
                "encoding_format": "base64",
                "dimensions": 256,
            }),
        );
    routes.with(embed)
}

/// What its clients tell errors apart by.
pub(super) fn error_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// Texts to embed.
#[derive(Debug, Deserialize, JsonSchema)]
struct EmbeddingsRequest {
    #[schemars(with = "Inputs")]
    input: TextsOrIds,
    /// Any name: a function has one model.
    #[serde(default)]
    #[expect(dead_code, reason = "any name will do")]
    model: Option<String>,
    /// How many numbers of each vector are kept; all unless it is set.
    #[serde(default)]
    #[schemars(with = "Dimensions")]
    dimensions: Option<Whole<usize>>,
    /// Numbers in JSON, unless it is set to the base64 of their little-endian bytes.
    #[serde(default)]
    encoding_format: Option<EncodingFormat>,
    /// Whom the request is for.
    #[serde(default)]
    #[expect(dead_code, reason = "nobody is told")]
    user: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string or an array of strings")]
enum TextsOrIds {
    Texts(Inputs),
    Ids(Vec<Whole<u32>>),
    ManyIds(Vec<Vec<Whole<u32>>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum EncodingFormat {
    Float,
    Base64,
}

/// A vector for each text.
#[derive(Debug, Serialize, JsonSchema)]
struct EmbeddingsAnswer {
    object: &'static str,
    data: Vec<Embedding>,
    /// The model that answered.
    model: String,
    usage: TokenUsage,
}

/// A vector.
#[derive(Debug, Serialize, JsonSchema)]
struct Embedding {
    object: &'static str,
    /// Of the text.
    index: usize,
    embedding: Vector,
}

/// Numbers, or the base64 of their little-endian bytes.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Tokens that the model read.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
pub(super) struct TokenUsage {
    prompt_tokens: usize,
    total_tokens: usize,
}

impl From<Usage> for TokenUsage {
    fn from(usage: Usage) -> Self {
        Self { prompt_tokens: usage.num_tokens, total_tokens: usage.num_tokens }
    }
}

async fn vectors(
    endpoint: Endpoint<Embedder>,
    request: EmbeddingsRequest,
) -> Result<Answer<EmbeddingsAnswer>, ApiError> {
    let texts = texts(&endpoint, request.input).await?;
    let dimensions = request.dimensions.map(|Whole(dimensions)| dimensions);
    let options = EmbedOptions { dimensions, ..EmbedOptions::default() };
    let embedded = endpoint.embed(texts, options).await?;
    let is_base64 = request.encoding_format == Some(EncodingFormat::Base64);
    let rows = embedded.rows.into_iter().enumerate();
    let data = rows.map(|(index, row)| Embedding {
        object: "embedding",
        index,
        embedding: if is_base64 { Vector::Base64(base64(&row)) } else { Vector::Float(row) },
    });
    let answer = EmbeddingsAnswer {
        object: "list",
        data: data.collect(),
        model: endpoint.pipeline().await?.model().name.to_string(),
        usage: embedded.usage.into(),
    };
    Ok(Answer::new(answer, embedded.usage))
}

/// The texts of a request; token ids are decoded first, if they are taken at all.
async fn texts(endpoint: &Endpoint<Embedder>, input: TextsOrIds) -> Result<Texts, ApiError> {
    let ids = match input {
        TextsOrIds::Texts(texts) => return Ok(texts.texts("input")),
        // No ids and no texts look the same.
        TextsOrIds::Ids(ids) => vec![ids],
        TextsOrIds::ManyIds(texts) => texts,
    };
    if !endpoint.config.allow_token_ids {
        let message = "token ids are not taken: they would have to be of this model's own \
                       vocabulary. Send texts (LangChain: check_embedding_ctx_length=False), or set \
                       ALLOW_TOKEN_IDS=true";
        return Err(ApiError::field("token_ids", "input", message));
    }
    let decoded = tei::decode_ids(endpoint, "input", ids, true).await?;
    Ok(Texts::many("input", decoded))
}

fn base64(row: &[f32]) -> String {
    let mut bytes = Vec::with_capacity(size_of_val(row));
    row.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes()));
    BASE64_STANDARD.encode(bytes)
}

/// The models that there are, for OpenAI's clients and for KServe's.
#[derive(Debug, Serialize, JsonSchema)]
struct Models {
    /// Their names.
    models: Vec<String>,
    object: &'static str,
    data: Vec<Model>,
}

/// A model, for OpenAI's clients and for KServe's.
#[derive(Debug, Serialize, JsonSchema)]
struct Model {
    name: String,
    id: String,
    /// Whether it can answer.
    ready: bool,
    object: &'static str,
    /// When this process started, in seconds since 1970.
    created: u64,
    owned_by: &'static str,
}

fn model_of<P: Pipeline>(endpoint: &Endpoint<P>) -> Model {
    let (name, ready) = match endpoint.model.state() {
        State::Ready(pipeline) => (pipeline.model().name.to_string(), true),
        State::Loading | State::Failed(_) => (endpoint.function.to_owned(), false),
    };
    let created = endpoint.started_secs;
    Model { id: name.clone(), name, ready, object: "model", created, owned_by: OWNER }
}

async fn models<P: Pipeline>(call: Call<P>) -> Result<Response, ApiError> {
    let model = model_of(&call.endpoint);
    let models = vec![model.name.clone()];
    Answer::of(Models { models, object: "list", data: vec![model] }).response(call.started)
}

async fn model<P: Pipeline>(call: Call<P>) -> Result<Response, ApiError> {
    let model = model_of(&call.endpoint);
    let status = if model.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Answer::of(model).response(call.started)?).into_response())
}
