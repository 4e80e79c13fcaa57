//! text-embeddings-inference.
//!
//! ```text
//! POST /predict     {"inputs": …}                              ->  [{"score", "label"}], or one such array a text
//! POST /embed       {"inputs": …}                              ->  [[0.013, -0.052, …], …]
//! POST /similarity  {"inputs": {"source_sentence", "sentences"}}  ->  [0.98, …]
//! POST /rerank      {"query", "texts"}                         ->  [{"index", "score"}], best first
//! POST /tokenize    {"inputs": …}                              ->  [[{"id", "text", "special", …}]]
//! POST /decode      {"ids": …}                                 ->  ["…"]
//! GET  /info
//! ```
//!
//! Source: <https://huggingface.github.io/text-embeddings-inference>

use std::collections::BTreeMap;

use axum::http::StatusCode;
use pipeline::{
    Classifier, ClassifyOptions, EmbedOptions, Embedder, Pipeline, Reranker, Scores, Task, Text,
    Truncation,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::json;

use super::{
    Dialect::Tei,
    inputs::{
        Dimensions, Direction, Inputs, LabelScore, Many, OneText, PairInputs, PromptName, TokenIds,
        labels, truncation,
    },
};
use crate::{
    answer::Answer,
    config::quota_threads,
    endpoint::{Endpoint, Texts},
    error::ApiError,
    json::{Object, Whole},
    model::State,
    routes::{Call, Operation, Routes},
};

/// What every function has.
pub(crate) fn every<P: Pipeline>(routes: Routes<P>) -> Routes<P> {
    routes
        .with(Operation::get::<Info, _, _>(
            Tei,
            "/info",
            "The model, and the limits of this function.",
            async |call: Call<P>| info(&call.endpoint)?.response(call.started),
        ))
        .with(
            Operation::post(Tei, "/tokenize", "The tokens of texts.", tokenize)
                .example("text", json!({ "inputs": "What a film!" })),
        )
        .with(
            Operation::post(Tei, "/decode", "The texts that token ids stand for.", decode)
                .example("ids", json!({ "ids": [101, 2054, 1037, 2143, 999, 102] })),
        )
}

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let predict = Operation::post(Tei, "/predict", "All labels of texts or pairs.", classify)
        .example("one text", json!({ "inputs": "What a film!" }))
        .example("several", json!({ "inputs": [["What a film!"], ["It never starts."]] }));
    routes.with(predict)
}

pub(crate) fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    routes
        .with(
            Operation::post(Tei, "/embed", "A vector for each text.", vectors)
                .example("one text", json!({ "inputs": "What a film!" }))
                .example("several", json!({ "inputs": ["What a film!", "A movie to remember."] })),
        )
        .with(
            Operation::post(Tei, "/similarity", "How close sentences are to another.", similarity)
                .example("sentences", similarity_example()),
        )
}

pub(crate) fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    let rerank = Operation::post(Tei, "/rerank", "Texts by how well they answer a query.", ranked);
    routes.with(rerank.example("texts", rerank_example()))
}

pub(super) fn similarity_example() -> serde_json::Value {
    json!({ "inputs": {
        "source_sentence": "How do I reset my password?",
        "sentences": ["I forgot my login.", "It rains."],
    } })
}

pub(super) fn rerank_example() -> serde_json::Value {
    json!({
        "query": "Which city is the capital of France?",
        "texts": ["The river is long.", "Paris is the capital of France."],
    })
}

/// What its clients tell errors apart by.
pub(super) fn error_type(error: &ApiError) -> &'static str {
    match (&*error.code, error.status) {
        ("empty", _) => "Empty",
        ("overloaded" | "rate_limited", _) => "Overloaded",
        ("internal", _) => "Backend",
        (_, StatusCode::SERVICE_UNAVAILABLE) => "Unhealthy",
        ("tokenizer", _) => "Tokenizer",
        _ => "Validation",
    }
}

/// Texts to classify.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct TeiPredictRequest {
    /// A text or a pair; or several of them, each an array of one or two strings.
    inputs: PairInputs,
    /// Whether logits are wanted, not probabilities.
    #[serde(default)]
    raw_scores: bool,
    /// Whether a text of too many tokens is cut, not refused; the function's setting unless it is
    /// set.
    #[serde(default)]
    truncate: Option<bool>,
    /// Which end is cut off.
    #[serde(default)]
    truncation_direction: Option<Direction>,
    /// That of another dialect.
    #[serde(default)]
    #[schemars(skip)]
    text: Option<IgnoredAny>,
}

/// Labels of one text, or of each of several.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum TeiPredictAnswer {
    /// Of one text.
    One(Vec<LabelScore>),
    /// Of each of several.
    Many(Vec<Vec<LabelScore>>),
}

async fn classify(
    endpoint: Endpoint<Classifier>,
    request: TeiPredictRequest,
) -> Result<Answer<TeiPredictAnswer>, ApiError> {
    if request.text.is_some() {
        let message = "the body has both text and inputs: send one of them";
        return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "ambiguous", message));
    }
    let are_many = request.inputs.are_many();
    let options = ClassifyOptions {
        top_k: None,
        scores: request.raw_scores.then_some(Scores::Logits),
        truncation: truncation(request.truncate, request.truncation_direction),
    };
    let classified = endpoint.predict(request.inputs.texts("inputs"), options).await?;
    let answer = answer_of(labels(classified.rows), are_many);
    Ok(Answer::new(answer, classified.usage))
}

pub(super) fn answer_of(mut rows: Vec<Vec<LabelScore>>, are_many: bool) -> TeiPredictAnswer {
    match are_many {
        true => TeiPredictAnswer::Many(rows),
        false => TeiPredictAnswer::One(rows.pop().unwrap_or_default()),
    }
}

/// Texts to embed.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct EmbedRequest {
    /// A text, or several.
    inputs: Inputs,
    /// Whether vectors have length 1; they do unless it is set.
    #[serde(default)]
    normalize: Option<bool>,
    /// How many numbers of each vector are kept; all unless it is set.
    #[serde(default)]
    #[schemars(with = "Dimensions")]
    dimensions: Option<Whole<usize>>,
    /// Which of the model's prompts stands before the texts; its default unless it is set.
    #[serde(default)]
    #[schemars(with = "PromptName")]
    prompt_name: Option<String>,
    /// Whether a text of too many tokens is cut, not refused; the function's setting unless it is
    /// set.
    #[serde(default)]
    truncate: Option<bool>,
    /// Which end is cut off.
    #[serde(default)]
    truncation_direction: Option<Direction>,
    /// How vectors are written.
    #[serde(default)]
    #[expect(dead_code, reason = "there is one way")]
    encoding_format: Option<Encoding>,
}

/// How vectors are written; for base64 there is `/v1/embeddings`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
enum Encoding {
    Float,
}

pub(super) async fn vectors(
    endpoint: Endpoint<Embedder>,
    request: EmbedRequest,
) -> Result<Answer<Vec<Vec<f32>>>, ApiError> {
    let options = EmbedOptions {
        normalize: request.normalize.unwrap_or(true),
        dimensions: request.dimensions.map(|Whole(dimensions)| dimensions),
        prompt_name: request.prompt_name,
        truncation: truncation(request.truncate, request.truncation_direction),
    };
    let embedded = endpoint.embed(request.inputs.texts("inputs"), options).await?;
    Ok(Answer::new(embedded.rows, embedded.usage))
}

/// A sentence and others to compare with it.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SimilarityRequest {
    inputs: Object<Sentences>,
    #[serde(default)]
    parameters: Option<Object<SimilarityParameters>>,
}

/// A sentence and others to compare with it.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct Sentences {
    /// The sentence.
    #[schemars(with = "OneText")]
    source_sentence: String,
    /// The others.
    #[schemars(with = "Many<OneText>")]
    sentences: Vec<String>,
}

/// How they are read.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(super) struct SimilarityParameters {
    #[serde(default)]
    truncate: Option<bool>,
    #[serde(default)]
    truncation_direction: Option<Direction>,
    #[serde(default)]
    #[schemars(with = "PromptName")]
    prompt_name: Option<String>,
}

pub(super) async fn similarity(
    endpoint: Endpoint<Embedder>,
    request: SimilarityRequest,
) -> Result<Answer<Vec<f32>>, ApiError> {
    let Object(Sentences { source_sentence, sentences }) = request.inputs;
    let Object(parameters) = request.parameters.unwrap_or_default();
    let truncation = truncation(parameters.truncate, parameters.truncation_direction);
    let source = Texts::one("inputs.source_sentence", source_sentence);
    let sentences = Texts::many("inputs.sentences", sentences);
    let scored = endpoint.similarity(source, sentences, parameters.prompt_name, truncation);
    let (scores, usage) = scored.await?;
    Ok(Answer::new(scores, usage))
}

/// A query, and texts to rank.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct RerankRequest {
    #[schemars(with = "OneText")]
    query: String,
    #[schemars(with = "Many<OneText>")]
    texts: Vec<String>,
    /// Whether logits are wanted, not scores from 0 to 1.
    #[serde(default)]
    raw_scores: bool,
    /// Whether the texts come back.
    #[serde(default)]
    return_text: bool,
    /// Whether a text of too many tokens is cut, not refused; the function's setting unless it is
    /// set.
    #[serde(default)]
    truncate: Option<bool>,
    /// Which end is cut off.
    #[serde(default)]
    truncation_direction: Option<Direction>,
}

/// How well a text answers the query.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Rank {
    /// Which of the texts.
    index: usize,
    /// 0 to 1, or the model's logit.
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

pub(super) async fn ranked(
    endpoint: Endpoint<Reranker>,
    request: RerankRequest,
) -> Result<Answer<Vec<Rank>>, ApiError> {
    let RerankRequest { query, texts, raw_scores, return_text, .. } = request;
    let truncation = truncation(request.truncate, request.truncation_direction);
    let returned = if return_text { texts.clone() } else { Vec::new() };
    let texts = Texts::many("texts", texts);
    let ranking = endpoint.rerank(query, texts, raw_scores, truncation).await?;
    let ranks = ranking.scores.iter().map(|text| Rank {
        index: text.index,
        score: text.score,
        text: returned.get(text.index).cloned(),
    });
    Ok(Answer::new(ranks.collect(), ranking.usage))
}

/// Texts to cut into tokens.
#[derive(Debug, Deserialize, JsonSchema)]
struct TokenizeRequest {
    inputs: Inputs,
    /// Whether the tokens that the model adds to each text are wanted; they are unless it is set.
    #[serde(default)]
    add_special_tokens: Option<bool>,
}

/// One token.
#[derive(Debug, Serialize, JsonSchema)]
struct Token {
    /// As the model reads it.
    id: u32,
    /// What it stands for.
    text: String,
    /// Whether the model added it.
    special: bool,
    /// Where it begins in the text, in characters; none of a special token.
    start: Option<usize>,
    /// Where it ends.
    stop: Option<usize>,
}

async fn tokenize<P: Pipeline>(
    endpoint: Endpoint<P>,
    request: TokenizeRequest,
) -> Result<Answer<Vec<Vec<Token>>>, ApiError> {
    let add_special_tokens = request.add_special_tokens.unwrap_or(true);
    let mut texts = request.inputs.texts("inputs");
    let checked = texts.check(&endpoint.config)?;
    let tokens = endpoint.apart(move |pipeline| {
        let tokens = checked.iter().map(|text| {
            let (Text::One(text) | Text::Pair(_, text)) = text;
            pipeline.tokens(text, add_special_tokens)
        });
        tokens.collect::<Result<Vec<_>, _>>()
    });
    let mut rows = Vec::new();
    for tokens in tokens.await?? {
        let row = tokens.into_iter().map(|token| Token {
            id: token.id,
            text: token.text,
            special: token.place.is_none(),
            start: token.place.as_ref().map(|place| place.start),
            stop: token.place.as_ref().map(|place| place.end),
        });
        rows.push(row.collect());
    }
    Ok(Answer::of(rows))
}

/// Token ids to make texts of.
#[derive(Debug, Deserialize, JsonSchema)]
struct DecodeRequest {
    /// Of one text, or of several.
    ids: Ids,
    /// Whether tokens that the model adds are left out; they are unless it is set.
    #[serde(default)]
    skip_special_tokens: Option<bool>,
}

/// Of one text, or of several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "an array of token ids, or an array of such arrays")]
#[schemars(inline)]
enum Ids {
    One(#[schemars(with = "TokenIds")] Vec<Whole<u32>>),
    Many(#[schemars(with = "Many<TokenIds>")] Vec<Vec<Whole<u32>>>),
}

async fn decode<P: Pipeline>(
    endpoint: Endpoint<P>,
    request: DecodeRequest,
) -> Result<Answer<Vec<String>>, ApiError> {
    let texts = match request.ids {
        Ids::One(ids) => vec![ids],
        Ids::Many(texts) => texts,
    };
    let skip_special_tokens = request.skip_special_tokens.unwrap_or(true);
    let texts = decode_ids(&endpoint, "ids", texts, skip_special_tokens).await?;
    Ok(Answer::of(texts))
}

/// The texts that token ids in `field` stand for. A token is a character at least.
pub(super) async fn decode_ids<P: Pipeline>(
    endpoint: &Endpoint<P>,
    field: &str,
    texts: Vec<Vec<Whole<u32>>>,
    skip_special_tokens: bool,
) -> Result<Vec<String>, ApiError> {
    let (max_texts, max_ids) =
        (endpoint.config.max_client_batch_size, endpoint.config.max_input_chars);
    if texts.is_empty() || texts.iter().any(Vec::is_empty) {
        return Err(ApiError::field("empty", field, "is empty"));
    }
    if texts.len() > max_texts {
        let message = format!("has {} texts, limit is {max_texts}", texts.len());
        return Err(ApiError::field("too_many", field, message).with_limit(max_texts));
    }
    if let Some(ids) = texts.iter().find(|ids| ids.len() > max_ids) {
        let message = format!("has {} token ids, limit is {max_ids}", ids.len());
        return Err(ApiError::field("too_long", field, message).with_limit(max_ids));
    }
    let decoded = endpoint.apart(move |pipeline| {
        let decoded = texts.into_iter().map(|ids| {
            let ids: Vec<u32> = ids.into_iter().map(|Whole(id)| id).collect();
            pipeline.decode(&ids, skip_special_tokens)
        });
        decoded.collect::<Result<_, _>>()
    });
    Ok(decoded.await??)
}

/// The model, and the limits of a function.
#[derive(Debug, Serialize, JsonSchema)]
struct Info {
    model_id: String,
    /// A digest of the model's files.
    model_sha: String,
    /// What linear layers are computed in, if it is set.
    model_dtype: Option<&'static str>,
    model_type: ModelType,
    max_concurrent_requests: usize,
    /// In tokens.
    max_input_length: usize,
    max_batch_tokens: usize,
    max_batch_requests: usize,
    max_client_batch_size: usize,
    /// Whether longer texts are cut, not refused.
    auto_truncate: bool,
    tokenization_workers: usize,
    /// Of Sanderling.
    version: &'static str,
    /// Numbers in a whole embedding.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_size: Option<usize>,
}

/// What the model is for.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum ModelType {
    Classifier {
        id2label: BTreeMap<usize, String>,
        label2id: BTreeMap<String, usize>,
    },
    Embedding {
        pooling: String,
    },
    Reranker {
        id2label: BTreeMap<usize, String>,
        label2id: BTreeMap<String, usize>,
    },
    /// Something else.
    Other {},
}

fn info<P: Pipeline>(endpoint: &Endpoint<P>) -> Result<Answer<Info>, ApiError> {
    let pipeline = match endpoint.model.state() {
        State::Ready(pipeline) => pipeline,
        State::Loading => return Err(ApiError::loading()),
        State::Failed(failure) => return Err((&failure).into()),
    };
    let (model, config) = (pipeline.model(), &endpoint.config);
    let numbered = |labels: &[String]| {
        let labels = labels.iter().cloned().enumerate();
        (labels.clone().collect(), labels.map(|(id, label)| (label, id)).collect())
    };
    let mut hidden_size = None;
    let model_type = match pipeline.task() {
        Task::Classify { labels } => {
            let (id2label, label2id) = numbered(labels);
            ModelType::Classifier { id2label, label2id }
        }
        Task::Rerank { label } => {
            let (id2label, label2id) = numbered(&[label.to_owned()]);
            ModelType::Reranker { id2label, label2id }
        }
        Task::Embed { hidden_size: width, pooling, .. } => {
            hidden_size = Some(width);
            let set = config.engine_options.pooling.map(|pooling| pooling.as_str());
            ModelType::Embedding { pooling: set.or(pooling).unwrap_or("mean").to_owned() }
        }
        _ => ModelType::Other {},
    };
    Ok(Answer::of(Info {
        model_id: model.name.to_string(),
        model_sha: model.version.to_string(),
        model_dtype: config.engine_options.precision.map(|precision| precision.as_str()),
        model_type,
        max_concurrent_requests: config.max_concurrent_requests,
        max_input_length: model.max_input_tokens,
        max_batch_tokens: config.batch_limits.max_batch_tokens,
        max_batch_requests: config.batch_limits.max_batch_requests,
        max_client_batch_size: config.max_client_batch_size,
        auto_truncate: config.token_limits.truncation != Truncation::Off,
        tokenization_workers: quota_threads(),
        version: env!("CARGO_PKG_VERSION"),
        hidden_size,
    }))
}
