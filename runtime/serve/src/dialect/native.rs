//! Our own.
//!
//! ```text
//! POST /predict  {"text": "…", "top_k": 1}  ->  [{"label": "POSITIVE", "score": 0.9998}]
//! GET /health    ->  {"status": "healthy", "model": "…", "version": "…"}
//! GET /activity  ->  {"waiting": 0, "max_queue_requests": 512, "batches": […]}
//! ```

use axum::{
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use pipeline::{Classifier, ClassifyOptions, Pipeline};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::json;

use super::{
    Dialect::Native,
    inputs::{LabelScore, OneText, TopK, labels},
};
use crate::{
    answer::Answer,
    endpoint::{Endpoint, Texts},
    error::ApiError,
    json::Whole,
    model::State,
    routes::{Call, Operation, Routes},
    service::Service,
};

/// What every function has, with or without a model.
pub(crate) fn health<P: Service>(routes: Routes<P>) -> Routes<P> {
    routes.with(Operation::get::<Health, _, _>(
        Native,
        "/health",
        "Whether the model can answer, and why not.",
        health_of,
    ))
}

/// What every function with a model has.
pub(crate) fn every<P: Pipeline>(routes: Routes<P>) -> Routes<P> {
    health(routes).with(Operation::get::<Activity, _, _>(
        Native,
        "/activity",
        "What waits, and the batches that have run last.",
        async |call: Call<P>| activity(&call.endpoint).response(call.started),
    ))
}

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let predict =
        Operation::post(Native, "/predict", "The most probable labels of a text.", answer)
            .fits(|body| !has_inputs(body))
            .example("text", json!({ "text": "A film that stays with you.", "top_k": 2 }));
    routes.with(predict)
}

/// A text, and how many labels are wanted.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PredictRequest {
    /// The text.
    #[schemars(with = "OneText")]
    text: String,
    /// How many labels, the most probable first; 1 unless it is set.
    #[serde(default)]
    #[schemars(with = "TopK")]
    top_k: Option<Whole<usize>>,
}

pub(super) async fn answer(
    endpoint: Endpoint<Classifier>,
    request: PredictRequest,
) -> Result<Answer<Vec<LabelScore>>, ApiError> {
    let top_k = request.top_k.map_or(1, |Whole(top_k)| top_k);
    let options = ClassifyOptions { top_k: Some(top_k), ..ClassifyOptions::default() };
    let texts = Texts::one("text", request.text);
    let classified = endpoint.predict(texts, options).await?;
    let labels = labels(classified.rows).into_iter().flatten().collect();
    Ok(Answer::new(labels, classified.usage))
}

/// Whether a body has the field by which text-embeddings-inference calls its texts.
fn has_inputs(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Keys {
        inputs: Option<IgnoredAny>,
    }
    // Most bodies need not be parsed to say so; an escape may stand for a letter of the name.
    let may_have = body.contains(&b'\\') || body.windows(6).any(|part| part == b"inputs");
    may_have && serde_json::from_slice::<Keys>(body).is_ok_and(|keys| keys.inputs.is_some())
}

/// Whether the model can answer.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Health {
    /// It can.
    Healthy {
        /// As the model calls itself.
        model: String,
        /// A digest of its files.
        version: String,
    },
    /// Not yet.
    Loading,
    /// It could not be loaded.
    Unavailable {
        /// Why.
        reason: String,
    },
}

async fn health_of<P: Service>(call: Call<P>) -> Result<Response, ApiError> {
    let (status, health) = match call.endpoint.model.state() {
        State::Ready(service) => {
            let model = service.info();
            let (model, version) = (model.name.to_string(), model.version.to_string());
            (StatusCode::OK, Health::Healthy { model, version })
        }
        State::Failed(failure) => {
            let reason = failure.to_string();
            (StatusCode::SERVICE_UNAVAILABLE, Health::Unavailable { reason })
        }
        State::Loading => (StatusCode::SERVICE_UNAVAILABLE, Health::Loading),
    };
    let answer = Answer::of(&health).response(call.started)?;
    Ok(match health {
        Health::Loading => (status, [(RETRY_AFTER, "1")], answer).into_response(),
        _ => (status, answer).into_response(),
    })
}

/// What a function does just now.
#[derive(Debug, Serialize, JsonSchema)]
struct Activity {
    /// Texts that wait for the model.
    waiting: usize,
    /// Texts that may wait.
    max_queue_requests: usize,
    /// The newest batches, newest first.
    batches: Vec<Batch>,
}

/// A batch that has run.
#[derive(Debug, Serialize, JsonSchema)]
struct Batch {
    /// Counts all of them, from 1.
    number: u64,
    texts: usize,
    tokens: usize,
    /// How long the model took, in milliseconds.
    forward_ms: f64,
    /// How long ago it ended, in milliseconds.
    age_ms: f64,
}

fn activity<P: Pipeline>(endpoint: &Endpoint<P>) -> Answer<Activity> {
    let State::Ready(pipeline) = endpoint.model.state() else {
        let max_queue_requests = endpoint.config.batch_limits.max_queue_requests;
        return Answer::of(Activity { waiting: 0, max_queue_requests, batches: Vec::new() });
    };
    let activity = pipeline.activity();
    let batches = activity.batches.iter().map(|batch| Batch {
        number: batch.number,
        texts: batch.num_texts,
        tokens: batch.num_tokens,
        forward_ms: batch.forward.as_secs_f64() * 1e3,
        age_ms: batch.ended.elapsed().as_secs_f64() * 1e3,
    });
    Answer::of(Activity {
        waiting: activity.num_waiting,
        max_queue_requests: activity.max_queue_requests,
        batches: batches.collect(),
    })
}
