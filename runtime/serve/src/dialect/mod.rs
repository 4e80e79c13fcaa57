//! The JSON of the wire: one file a dialect, each with its routes, shapes and errors.
//!
//! A dialect reads what its clients send, calls an endpoint, and writes what they expect. The
//! endpoints know none of them.

mod cloudevents;
mod cohere;
mod hugging_face;
mod inputs;
mod kserve;
mod native;
mod open_inference;
mod openai;
mod sagemaker;
mod tei;
mod vllm;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::Response,
};
use pipeline::{Classifier, Embedder, Pipeline, Reranker};
use serde_json::{Map, Value, json};

pub(crate) use self::inputs::LIMIT;
use crate::{error::ApiError, face, routes::Routes, service::Service};

/// Text classification in every dialect: for [`run`](crate::run).
#[must_use]
pub fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let dialects = [
        native::predict,
        tei::predict,
        cloudevents::predict,
        hugging_face::predict,
        vllm::predict,
        kserve::predict,
        open_inference::predict,
        sagemaker::predict,
    ];
    dialects.into_iter().fold(routes, |routes, dialect| dialect(routes))
}

/// Sentence embeddings in every dialect: for [`run`](crate::run).
#[must_use]
pub fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    let dialects = [
        tei::embed,
        cloudevents::embed,
        hugging_face::embed,
        openai::embed,
        kserve::embed,
        open_inference::embed,
        sagemaker::embed,
    ];
    dialects.into_iter().fold(routes, |routes, dialect| dialect(routes))
}

/// Reranking in every dialect: for [`run`](crate::run).
#[must_use]
pub fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    let dialects = [
        tei::rerank,
        cloudevents::rerank,
        hugging_face::rerank,
        cohere::rerank,
        kserve::rerank,
        open_inference::rerank,
        sagemaker::rerank,
    ];
    dialects.into_iter().fold(routes, |routes, dialect| dialect(routes))
}

/// What every function answers, with or without a model.
pub(crate) fn basic<P: Service>(routes: Routes<P>) -> Routes<P> {
    native::health(face::docs(routes))
}

/// What every function with a model answers, whatever it is for.
pub(crate) fn every<P: Pipeline>(routes: Routes<P>) -> Routes<P> {
    let parts = [
        face::every,
        native::every,
        tei::every,
        openai::every,
        open_inference::every,
        sagemaker::every,
    ];
    parts.into_iter().fold(routes, |routes, part| part(routes))
}

/// Whose JSON a request speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Dialect {
    /// Our own.
    Native,
    /// text-embeddings-inference.
    Tei,
    /// Hugging Face's inference API.
    HuggingFace,
    /// OpenAI's API.
    OpenAi,
    /// vLLM's additions to OpenAI's API.
    Vllm,
    /// Cohere's API.
    Cohere,
    /// KServe's first protocol.
    KServe,
    /// The Open Inference Protocol, KServe's second.
    OpenInference,
    /// CloudEvents over HTTP.
    CloudEvents,
    /// Containers on SageMaker.
    SageMaker,
}

impl Dialect {
    /// As people call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Native => "Sanderling",
            Self::Tei => "text-embeddings-inference",
            Self::HuggingFace => "Hugging Face",
            Self::OpenAi => "OpenAI",
            Self::Vllm => "vLLM",
            Self::Cohere => "Cohere",
            Self::KServe => "KServe v1",
            Self::OpenInference => "Open Inference Protocol v2",
            Self::CloudEvents => "CloudEvents",
            Self::SageMaker => "SageMaker",
        }
    }

    /// Of a path whose handler does not say, or that has none.
    fn of_path(path: &str) -> Self {
        match path {
            "/" => Self::HuggingFace,
            "/v1/rerank" | "/v2/rerank" => Self::Cohere,
            "/v1/classify" => Self::Vllm,
            "/invocations" | "/ping" => Self::SageMaker,
            "/embed" | "/rerank" | "/similarity" | "/tokenize" | "/decode" | "/info" => Self::Tei,
            _ if path.ends_with(":predict") => Self::KServe,
            _ if path.starts_with("/v2") => Self::OpenInference,
            _ if path.starts_with("/v1/") => Self::OpenAi,
            _ => Self::Native,
        }
    }

    /// The status that its clients expect for `error`.
    pub(crate) fn status(self, error: &ApiError) -> StatusCode {
        match self {
            Self::Native => error.status,
            Self::Tei | Self::SageMaker => match &*error.code {
                "empty" => StatusCode::BAD_REQUEST,
                "too_long" | "too_many" | "out_of_range" => StatusCode::PAYLOAD_TOO_LARGE,
                "internal" => StatusCode::FAILED_DEPENDENCY,
                _ => error.status,
            },
            _ if error.status == StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            _ => error.status,
        }
    }

    pub(crate) fn envelope(self, error: &ApiError, status: StatusCode) -> Value {
        let ApiError { code, message, field, .. } = error;
        match self {
            Self::Native => json!({ "error": details(error, "message") }),
            Self::Tei | Self::SageMaker => {
                let mut envelope = details(error, "error");
                envelope.insert("error_type".to_owned(), tei::error_type(error).into());
                Value::Object(envelope)
            }
            Self::OpenAi | Self::Vllm => {
                let kind = openai::error_type(status);
                json!({ "error": {
                    "message": message, "type": kind, "param": field, "code": code,
                } })
            }
            Self::Cohere => json!({ "message": message }),
            Self::HuggingFace | Self::KServe | Self::OpenInference | Self::CloudEvents => {
                json!({ "error": message })
            }
        }
    }

    /// What the OpenAPI document says of [`envelope`](Self::envelope).
    pub(crate) fn envelope_schema(self) -> Value {
        let object = |required: &[&str], optional: &[(&str, &str)]| {
            let required_types = required.iter().map(|name| (*name, "string"));
            let all = required_types.chain(optional.iter().copied());
            let properties: Map<String, Value> =
                all.map(|(name, kind)| (name.to_owned(), json!({ "type": kind }))).collect();
            json!({ "type": "object", "required": required, "properties": properties })
        };
        let within = |error: Value| json!({ "type": "object", "required": ["error"], "properties": { "error": error } });
        let more = [("field", "string"), ("limit", "integer")];
        match self {
            Self::Native => within(object(&["code", "message"], &more)),
            Self::Tei | Self::SageMaker => object(&["error", "error_type", "code"], &more),
            Self::OpenAi | Self::Vllm => {
                let mut error = object(&["message", "type", "code"], &[]);
                error["properties"]["param"] = json!({ "type": ["string", "null"] });
                within(error)
            }
            Self::Cohere => object(&["message"], &[]),
            Self::HuggingFace | Self::KServe | Self::OpenInference | Self::CloudEvents => {
                object(&["error"], &[])
            }
        }
    }
}

/// All there is to know, with the message under `message`.
fn details(error: &ApiError, message: &str) -> Map<String, Value> {
    let mut details = Map::new();
    details.insert("code".to_owned(), (*error.code).into());
    details.insert(message.to_owned(), error.message.as_str().into());
    if let Some(field) = &error.field {
        details.insert("field".to_owned(), field.as_str().into());
    }
    if let Some(limit) = error.limit {
        details.insert("limit".to_owned(), limit.into());
    }
    details
}

/// Gives an error its status and body, in its own dialect or that of `path`; any other answer stays.
pub(crate) fn render(mut response: Response, path: &str) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else {
        return response;
    };
    let dialect = error.dialect.unwrap_or_else(|| Dialect::of_path(path));
    let status = dialect.status(&error);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.map(|_| Body::from(dialect.envelope(&error, status).to_string()))
}
