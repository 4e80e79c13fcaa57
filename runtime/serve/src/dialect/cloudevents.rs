//! CloudEvents over HTTP, as Knative's brokers deliver them: an event in, an event out.
//!
//! ```text
//! POST /  ce-id, ce-source, ce-type, ce-specversion: 1.0; body: the function's own request, or text/plain
//! POST /  application/cloudevents+json; {"specversion", "id", "source", "type", "data"}
//! ```
//!
//! The answer comes in the mode of the request, and has the type `sanderling.<function>.done`. 400
//! tells a broker not to come again; 429 and 5xx that it may.
//!
//! Source: <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>

use std::time::Instant;

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE},
    response::Response,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use pipeline::{Classifier, Embedder, Pipeline, Reranker};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};
use uuid::Uuid;

use super::{Dialect::CloudEvents, native, tei};
use crate::{
    answer::Answer,
    endpoint::Endpoint,
    error::ApiError,
    json,
    routes::{Call, Operation, Routes},
};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCHED: &str = "application/cloudevents-batch+json";
const SPEC_VERSION: &str = "1.0";

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let example = json!({ "text": "What a film!" });
    routes.with(event("Labels, for an event with a text.", "text", example, native::answer))
}

pub(crate) fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    let example = json!({ "inputs": "What a film!" });
    routes.with(event("Vectors, for an event with texts.", "inputs", example, tei::vectors))
}

pub(crate) fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    let example = tei::rerank_example();
    routes.with(event("A ranking, for an event with texts.", "texts", example, tei::ranked))
}

/// An event with a request.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "{Req}Event")]
#[expect(dead_code, reason = "the document alone needs it")]
struct RequestEvent<Req> {
    #[schemars(extend("const" = SPEC_VERSION))]
    specversion: String,
    /// Tells events of one source apart.
    #[schemars(length(min = 1))]
    id: String,
    /// Where it comes from, as a URI reference.
    #[schemars(length(min = 1))]
    source: String,
    /// Of what kind it is.
    #[schemars(length(min = 1))]
    r#type: String,
    /// What is asked.
    data: Req,
}

/// An event with an answer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "{T}AnswerEvent")]
struct AnswerEvent<T> {
    specversion: &'static str,
    id: String,
    source: String,
    r#type: String,
    datacontenttype: &'static str,
    data: T,
}

/// What is read of an event.
#[derive(Debug, Deserialize)]
struct Event {
    specversion: String,
    id: String,
    source: String,
    r#type: String,
    datacontenttype: Option<String>,
    data: Option<Box<RawValue>>,
    data_base64: Option<String>,
}

/// `handler` for events. A `text/plain` one has the `text` of a request.
fn event<P, Req, T, F, Fut>(
    summary: &'static str,
    text: &'static str,
    example: Value,
    handler: F,
) -> Operation<P>
where
    P: Pipeline,
    Req: DeserializeOwned + JsonSchema + Send + 'static,
    T: Serialize + JsonSchema + Send + 'static,
    F: Fn(Endpoint<P>, Req) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Answer<T>, ApiError>> + Send + 'static,
{
    let answer = move |call: Call<P>| {
        let handler = handler.clone();
        async move {
            let Call { endpoint, headers, body, started, .. } = call;
            let function = endpoint.function;
            let is_structured = json::content_type(&headers) == STRUCTURED;
            let data =
                if is_structured { of_structured(&body)? } else { of_binary(&headers, body)? };
            let answer = handler(endpoint, data.request(text)?).await?;
            if is_structured {
                structured(function, answer, started)
            } else {
                binary(function, &answer, started)
            }
        }
    };
    let example = json!({
        "specversion": SPEC_VERSION,
        "id": "1",
        "source": "/reviews",
        "type": "review.written",
        "data": example,
    });
    let path = "/";
    Operation::raw::<RequestEvent<Req>, AnswerEvent<T>, _, _>(CloudEvents, path, summary, answer)
        .takes(STRUCTURED, is_event)
        .example("event", example)
}

fn is_event(headers: &HeaderMap) -> bool {
    let content_type = json::content_type(headers);
    [STRUCTURED, BATCHED].contains(&&*content_type) || headers.contains_key("ce-specversion")
}

/// What an event carries.
enum Data {
    Json(Bytes),
    Text(String),
}

impl Data {
    fn of(content_type: &str, bytes: Bytes) -> Result<Self, ApiError> {
        let content_type = content_type.split(';').next().unwrap_or_default().trim();
        match content_type {
            "" => Ok(Self::Json(bytes)),
            json if json.ends_with("/json") || json.ends_with("+json") => Ok(Self::Json(bytes)),
            "text/plain" => match String::from_utf8(bytes.into()) {
                Ok(text) => Ok(Self::Text(text)),
                Err(error) => Err(ApiError::field("invalid_utf8", "data", error)),
            },
            _ => Err(ApiError::unsupported_type("application/json or text/plain")),
        }
    }

    fn request<Req: DeserializeOwned>(self, text: &str) -> Result<Req, ApiError> {
        match self {
            Self::Json(bytes) => json::parse(&bytes),
            Self::Text(value) => json::parse(json!({ text: value }).to_string().as_bytes()),
        }
    }
}

fn of_structured(body: &[u8]) -> Result<Data, ApiError> {
    let event: Event = json::parse(body)?;
    check_version(&event.specversion)?;
    for (name, value) in [("id", &event.id), ("source", &event.source), ("type", &event.r#type)] {
        if value.is_empty() {
            return Err(ApiError::field("empty", name, "is empty"));
        }
    }
    let media = event.datacontenttype.unwrap_or_default();
    match (event.data, event.data_base64) {
        (Some(_), Some(_)) => {
            let message = "the event has both data and data_base64: send one of them";
            Err(ApiError::field("ambiguous", "data", message))
        }
        (None, None) => Err(ApiError::missing("data")),
        (None, Some(base64)) => match BASE64_STANDARD.decode(base64) {
            Ok(bytes) => Data::of(&media, bytes.into()),
            Err(error) => Err(ApiError::field("invalid_field", "data_base64", error)),
        },
        (Some(data), None) if media.starts_with("text/plain") => {
            let text: Result<String, _> = serde_json::from_str(data.get());
            text.map(Data::Text).map_err(|error| ApiError::field("invalid_field", "data", error))
        }
        (Some(data), None) => Data::of(&media, Box::<str>::from(data).into_string().into()),
    }
}

fn of_binary(headers: &HeaderMap, body: Bytes) -> Result<Data, ApiError> {
    let content_type = json::content_type(headers);
    if content_type == BATCHED {
        return Err(ApiError::unsupported_type(
            "application/cloudevents+json: one event a request",
        ));
    }
    let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    check_version(header("ce-specversion").unwrap_or_default())?;
    for name in ["ce-id", "ce-source", "ce-type"] {
        if header(name).is_none_or(str::is_empty) {
            return Err(ApiError::missing(name));
        }
    }
    Data::of(&content_type, body)
}

fn check_version(version: &str) -> Result<(), ApiError> {
    if version == SPEC_VERSION {
        return Ok(());
    }
    let message = format!("{version:?} is not {SPEC_VERSION:?}");
    Err(ApiError::field("invalid_field", "specversion", message))
}

/// Id, source and type of an answer.
fn attributes(function: &str) -> [String; 3] {
    [Uuid::new_v4().to_string(), format!("/{function}"), format!("sanderling.{function}.done")]
}

fn structured<T: Serialize>(
    function: &str,
    answer: Answer<T>,
    started: Instant,
) -> Result<Response, ApiError> {
    let [id, source, r#type] = attributes(function);
    let event = answer.map(|data| AnswerEvent {
        specversion: SPEC_VERSION,
        id,
        source,
        r#type,
        datacontenttype: "application/json",
        data,
    });
    let mut response = event.response(started)?;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(STRUCTURED));
    Ok(response)
}

fn binary<T: Serialize>(
    function: &str,
    answer: &Answer<T>,
    started: Instant,
) -> Result<Response, ApiError> {
    let [id, source, r#type] = attributes(function);
    let mut response = answer.response(started)?;
    let headers = response.headers_mut();
    headers.insert("ce-specversion", HeaderValue::from_static(SPEC_VERSION));
    for (name, value) in [("ce-id", id), ("ce-source", source), ("ce-type", r#type)] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(response)
}
