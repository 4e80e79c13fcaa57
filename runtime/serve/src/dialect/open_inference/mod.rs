//! The Open Inference Protocol, KServe's second and Triton's own, with its binary tensors.
//!
//! ```text
//! POST /v2/models/{model}/infer  {"inputs": [{"name", "shape", "datatype", "data"}]}
//!   ->  {"model_name", "model_version", "id", "outputs": [{"name", "shape", "datatype", "data"}]}
//!
//!             inputs (BYTES)           outputs
//!   predict   text [n]                 labels BYTES [n, k], scores FP32 [n, k], best first
//!   embed     text [n]                 embeddings FP32 [n, hidden_size]
//!   rerank    query [1], texts [n]     scores FP32 [n], in the order of the texts
//! ```
//!
//! Sources: <https://github.com/kserve/open-inference-protocol>, and for binary tensors
//! <https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md>

mod tensor;

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use pipeline::{Classifier, ClassifyOptions, EmbedOptions, Embedder, Pipeline, Reranker, Usage};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::tensor::{Data, Input, Output};
use super::{Dialect::OpenInference, inputs::OneText};
use crate::{
    answer::{Answer, write_usage},
    endpoint::{Endpoint, Texts},
    error::ApiError,
    json::{self, Object},
    model::State,
    routes::{Call, Operation, Routes, VERSION},
};

const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

const MODEL: &str = "/v2/models/{model}";
const MODEL_VERSION: &str = "/v2/models/{model}/versions/{version}";
const READY: &str = "/v2/models/{model}/ready";
const VERSION_READY: &str = "/v2/models/{model}/versions/{version}/ready";
const INFER: &str = "/v2/models/{model}/infer";
const VERSION_INFER: &str = "/v2/models/{model}/versions/{version}/infer";

/// What every function has.
pub(crate) fn every<P: Pipeline>(mut routes: Routes<P>) -> Routes<P> {
    routes = routes
        .with(Operation::get::<Server, _, _>(
            OpenInference,
            "/v2",
            "What answers.",
            async |call: Call<P>| server().response(call.started),
        ))
        .with(Operation::get::<Ready, _, _>(
            OpenInference,
            "/v2/health/live",
            "Whether the process lives.",
            async |call: Call<P>| ready(true).response(call.started),
        ));
    for path in ["/v2/health/ready", READY, VERSION_READY] {
        let summary = "200 if the model can answer, 503 if it cannot yet.";
        routes = routes.with(Operation::get::<Ready, _, _>(OpenInference, path, summary, is_ready));
    }
    routes
}

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    const OUTPUTS: &[TensorMetadata] = &[
        TensorMetadata::new("labels", "BYTES", &[-1, -1]),
        TensorMetadata::new("scores", "FP32", &[-1, -1]),
    ];
    routes_of::<_, TextTensors, _, _>(routes, TEXT, OUTPUTS, text_example(), classify)
}

pub(crate) fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    const OUTPUTS: &[TensorMetadata] = &[TensorMetadata::new("embeddings", "FP32", &[-1, -1])];
    routes_of::<_, TextTensors, _, _>(routes, TEXT, OUTPUTS, text_example(), vectors)
}

pub(crate) fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    const INPUTS: &[TensorMetadata] = &[
        TensorMetadata::new("query", "BYTES", &[1]),
        TensorMetadata::new("texts", "BYTES", &[-1]),
    ];
    const OUTPUTS: &[TensorMetadata] = &[TensorMetadata::new("scores", "FP32", &[-1])];
    let example = json!({ "inputs": [
        { "name": "query", "shape": [1], "datatype": "BYTES", "data": ["Which city?"] },
        { "name": "texts", "shape": [2], "datatype": "BYTES",
          "data": ["It is long.", "Paris is a city."] },
    ] });
    routes_of::<_, QueryTensors, _, _>(routes, INPUTS, OUTPUTS, example, scores)
}

const TEXT: &[TensorMetadata] = &[TensorMetadata::new("text", "BYTES", &[-1])];

fn text_example() -> Value {
    json!({ "inputs": [
        { "name": "text", "shape": [2], "datatype": "BYTES",
          "data": ["What a film!", "It never starts."] },
    ] })
}

/// Outputs of a model: name, shape and data of each.
type Outputs = Vec<(&'static str, Vec<usize>, Data)>;

fn routes_of<P, Inputs, F, Fut>(
    mut routes: Routes<P>,
    inputs: &'static [TensorMetadata],
    outputs: &'static [TensorMetadata],
    example: Value,
    run: F,
) -> Routes<P>
where
    P: Pipeline,
    Inputs: JsonSchema,
    F: Fn(Endpoint<P>, Request) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = Result<(Outputs, Usage), ApiError>> + Send + 'static,
{
    for path in [MODEL, MODEL_VERSION] {
        let metadata = move |call: Call<P>| async move {
            metadata(&call.endpoint, inputs, outputs)?.response(call.started)
        };
        let summary = "The tensors of the model.";
        let metadata = Operation::get::<Metadata, _, _>(OpenInference, path, summary, metadata);
        routes = routes.with(metadata);
    }
    for path in [INFER, VERSION_INFER] {
        let summary = "Tensors for tensors. Their data may stand behind the JSON as raw bytes, as \
                       Inference-Header-Content-Length says.";
        let infer = move |call: Call<P>| infer(call, inputs, outputs, run);
        // The clients say application/octet-stream, or nothing.
        let infer = Operation::raw::<Inputs, Inferred, _, _>(OpenInference, path, summary, infer)
            .takes("application/json", |_| true)
            .example("tensors", example.clone());
        routes = routes.with(infer);
    }
    routes
}

/// What is asked of a model.
struct Request {
    texts: BTreeMap<String, Vec<String>>,
    parameters: Map<String, Value>,
}

impl Request {
    fn take(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        self.texts.remove(name).ok_or_else(|| ApiError::missing(name))
    }

    fn parameter<T: for<'de> Deserialize<'de>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.parameters.remove(name) else { return Ok(None) };
        let value = serde_json::from_value(value);
        value.map_err(|error| ApiError::field("invalid_field", name, error))
    }
}

async fn classify(
    endpoint: Endpoint<Classifier>,
    mut request: Request,
) -> Result<(Outputs, Usage), ApiError> {
    let options =
        ClassifyOptions { top_k: request.parameter("top_k")?, ..ClassifyOptions::default() };
    let texts = Texts::many("text", request.take("text")?);
    let classified = endpoint.predict(texts, options).await?;
    let num_texts = classified.rows.len();
    let num_labels = classified.rows.first().map_or(0, Vec::len);
    let labels = classified.rows.into_iter().flatten();
    let (labels, scores) = labels.map(|label| (label.label, label.score)).unzip();
    let shape = vec![num_texts, num_labels];
    let outputs =
        vec![("labels", shape.clone(), Data::Bytes(labels)), ("scores", shape, Data::Fp32(scores))];
    Ok((outputs, classified.usage))
}

async fn vectors(
    endpoint: Endpoint<Embedder>,
    mut request: Request,
) -> Result<(Outputs, Usage), ApiError> {
    let options = EmbedOptions {
        normalize: request.parameter("normalize")?.unwrap_or(true),
        dimensions: request.parameter("dimensions")?,
        prompt_name: request.parameter("prompt_name")?,
        truncation: None,
    };
    let texts = Texts::many("text", request.take("text")?);
    let embedded = endpoint.embed(texts, options).await?;
    let shape = vec![embedded.rows.len(), embedded.rows.first().map_or(0, Vec::len)];
    let outputs = vec![("embeddings", shape, Data::Fp32(embedded.rows.concat()))];
    Ok((outputs, embedded.usage))
}

async fn scores(
    endpoint: Endpoint<Reranker>,
    mut request: Request,
) -> Result<(Outputs, Usage), ApiError> {
    let raw_scores = request.parameter("raw_scores")?.unwrap_or(false);
    let mut query = request.take("query")?;
    let (Some(query), true) = (query.pop(), query.is_empty()) else {
        return Err(ApiError::field("invalid_field", "query", "there is not one query"));
    };
    let texts = request.take("texts")?;
    let mut scores = vec![0.0; texts.len()];
    let ranking = endpoint.rerank(query, Texts::many("texts", texts), raw_scores, None).await?;
    ranking.scores.iter().for_each(|text| scores[text.index] = text.score);
    let outputs = vec![("scores", vec![scores.len()], Data::Fp32(scores))];
    Ok((outputs, ranking.usage))
}

/// The JSON of a request.
#[derive(Debug, Deserialize)]
struct Head {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: Map<String, Value>,
    inputs: Vec<Object<Input>>,
    #[serde(default)]
    outputs: Vec<Object<RequestedOutput>>,
}

#[derive(Debug, Deserialize)]
struct RequestedOutput {
    name: String,
    #[serde(default)]
    parameters: Object<OutputParameters>,
}

#[derive(Debug, Default, Deserialize)]
struct OutputParameters {
    #[serde(default)]
    binary_data: Option<bool>,
    #[serde(default)]
    classification: Option<u64>,
}

/// What a model answers.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "InferAnswer")]
struct Inferred {
    model_name: String,
    model_version: &'static str,
    /// That of the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    outputs: Vec<Output>,
}

async fn infer<P: Pipeline, Fut>(
    call: Call<P>,
    inputs: &'static [TensorMetadata],
    known: &'static [TensorMetadata],
    run: impl Fn(Endpoint<P>, Request) -> Fut,
) -> Result<Response, ApiError>
where
    Fut: Future<Output = Result<(Outputs, Usage), ApiError>>,
{
    let Call { endpoint, headers, body, started, .. } = call;
    let (head, binary) = match headers.get(HEADER_LENGTH) {
        None => (&body[..], &[][..]),
        Some(length) => {
            let length = length.to_str().ok().and_then(|length| length.parse().ok());
            let parts = length.and_then(|length| body.split_at_checked(length));
            parts.ok_or_else(|| {
                let message =
                    "Inference-Header-Content-Length is not the length of a part of the body";
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_header", message)
            })?
        }
    };
    let mut head: Head = json::parse(head)?;
    let texts = texts(head.inputs, inputs, binary)?;
    check_outputs(&head.outputs, known)?;
    let all_binary =
        matches!(head.parameters.remove("binary_data_output"), Some(Value::Bool(true)));

    let request = Request { texts, parameters: head.parameters };
    let (outputs, usage) = run(endpoint.clone(), request).await?;

    let mut binary = Vec::new();
    let outputs = outputs.into_iter().filter_map(|(name, shape, data)| {
        let mut wanted = head.outputs.iter().map(|Object(wanted)| wanted);
        let is_binary = match wanted.find(|wanted| wanted.name == name) {
            Some(wanted) => wanted.parameters.0.binary_data.unwrap_or(all_binary),
            None if head.outputs.is_empty() => all_binary,
            None => return None,
        };
        Some(Output::new(name, shape, data, is_binary.then_some(&mut binary)))
    });
    let outputs = outputs.collect();
    let model_name = endpoint.pipeline().await?.model().name.to_string();
    let answer = Inferred { model_name, model_version: VERSION, id: head.id, outputs };
    if binary.is_empty() {
        return Answer::new(answer, usage).response(started);
    }
    let mut body = serde_json::to_vec(&answer).map_err(|_| ApiError::internal())?;
    let length = HeaderValue::from(body.len());
    body.append(&mut binary);
    let mut response = body.into_response();
    let octets = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(CONTENT_TYPE, octets);
    response.headers_mut().insert(HEADER_LENGTH, length);
    write_usage(&mut response, &usage, started.elapsed());
    Ok(response)
}

/// The texts of each input by its name.
fn texts(
    inputs: Vec<Object<Input>>,
    known: &[TensorMetadata],
    mut binary: &[u8],
) -> Result<BTreeMap<String, Vec<String>>, ApiError> {
    let mut texts = BTreeMap::new();
    for (index, Object(input)) in inputs.into_iter().enumerate() {
        let field = format!("inputs[{index}]");
        check_known("input", &input.name, &field, known)?;
        let name = input.name.clone();
        if texts.insert(name, input.texts(&mut binary, &field)?).is_some() {
            return Err(ApiError::field("invalid_field", &field, "is there twice"));
        }
    }
    if !binary.is_empty() {
        let message = format!("{} bytes behind the JSON belong to no input", binary.len());
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message));
    }
    Ok(texts)
}

fn check_outputs(
    outputs: &[Object<RequestedOutput>],
    known: &[TensorMetadata],
) -> Result<(), ApiError> {
    for (index, Object(output)) in outputs.iter().enumerate() {
        let field = format!("outputs[{index}]");
        check_known("output", &output.name, &field, known)?;
        if output.parameters.0.classification.is_some_and(|classes| classes > 0) {
            let message = "classification is not known here; predict has labels and scores";
            return Err(ApiError::field("invalid_field", &field, message));
        }
    }
    Ok(())
}

fn check_known(
    kind: &str,
    name: &str,
    field: &str,
    known: &[TensorMetadata],
) -> Result<(), ApiError> {
    if known.iter().any(|tensor| tensor.name == name) {
        return Ok(());
    }
    let known: Vec<&str> = known.iter().map(|tensor| tensor.name).collect();
    let message = format!("there is no {kind} {name:?}; known are {known:?}");
    Err(ApiError::field("unknown_tensor", field, message))
}

/// What answers.
#[derive(Debug, Serialize, JsonSchema)]
struct Server {
    name: &'static str,
    version: &'static str,
    extensions: [&'static str; 1],
}

fn server() -> Answer<Server> {
    Answer::of(Server {
        name: "sanderling",
        version: env!("CARGO_PKG_VERSION"),
        extensions: ["binary_tensor_data"],
    })
}

/// The specification and KServe's client read different ones of these.
#[derive(Debug, Serialize, JsonSchema)]
struct Ready {
    ready: bool,
    live: bool,
}

fn ready(ready: bool) -> Answer<Ready> {
    Answer::of(Ready { ready, live: true })
}

async fn is_ready<P: Pipeline>(call: Call<P>) -> Result<Response, ApiError> {
    let is_ready = matches!(call.endpoint.model.state(), State::Ready(_));
    let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, ready(is_ready).response(call.started)?).into_response())
}

/// The tensors of a model.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ModelMetadata")]
struct Metadata {
    name: String,
    versions: [&'static str; 1],
    platform: &'static str,
    inputs: &'static [TensorMetadata],
    outputs: &'static [TensorMetadata],
}

/// A tensor; -1 in its shape is any number.
#[derive(Debug, Serialize, JsonSchema)]
struct TensorMetadata {
    name: &'static str,
    datatype: &'static str,
    shape: &'static [i64],
}

impl TensorMetadata {
    const fn new(name: &'static str, datatype: &'static str, shape: &'static [i64]) -> Self {
        Self { name, datatype, shape }
    }
}

fn metadata<P: Pipeline>(
    endpoint: &Endpoint<P>,
    inputs: &'static [TensorMetadata],
    outputs: &'static [TensorMetadata],
) -> Result<Answer<Metadata>, ApiError> {
    let name = match endpoint.model.state() {
        State::Ready(pipeline) => pipeline.model().name.to_string(),
        State::Loading => return Err(ApiError::loading()),
        State::Failed(failure) => return Err((&failure).into()),
    };
    let (versions, platform) = ([VERSION], "sanderling");
    Ok(Answer::of(Metadata { name, versions, platform, inputs, outputs }))
}

/// Of `predict` and `embed`.
struct TextTensors;

/// Of `rerank`.
struct QueryTensors;

impl JsonSchema for TextTensors {
    fn schema_name() -> Cow<'static, str> {
        "TextTensors".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        request_schema(&[texts_schema(generator, "text", 2)])
    }
}

impl JsonSchema for QueryTensors {
    fn schema_name() -> Cow<'static, str> {
        "QueryTensors".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let query = texts_schema(generator, "query", 1);
        request_schema(&[query, texts_schema(generator, "texts", 2)])
    }
}

fn request_schema(inputs: &[Schema]) -> Schema {
    json_schema!({
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": { "type": ["string", "null"] },
            "inputs": {
                "type": "array",
                "prefixItems": inputs,
                "minItems": inputs.len(),
                "maxItems": inputs.len(),
            },
        },
    })
}

/// A tensor of up to `max` texts: a schema cannot say that shape and data agree.
fn texts_schema(generator: &mut SchemaGenerator, name: &str, max: usize) -> Schema {
    let text = OneText::json_schema(generator);
    let of = |num_texts: usize| {
        json_schema!({
            "type": "object",
            "required": ["name", "shape", "datatype", "data"],
            "properties": {
                "name": { "const": name },
                "shape": { "const": [num_texts] },
                "datatype": { "const": "BYTES" },
                "data": {
                    "type": "array", "items": text, "minItems": num_texts, "maxItems": num_texts,
                },
            },
        })
    };
    let alternatives: Vec<Schema> = (1..=max).map(of).collect();
    json_schema!({
        "description": "BYTES of the shape [n] or [n, 1]; here with as many texts as an example needs",
        "anyOf": alternatives,
    })
}
