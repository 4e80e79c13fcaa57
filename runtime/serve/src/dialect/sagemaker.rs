//! Containers on SageMaker: `GET /ping`, and `POST /invocations` with Hugging Face's request and
//! text-embeddings-inference's answer.
//!
//! Source: <https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html>

use axum::response::Response;
use pipeline::{Classifier, Embedder, Pipeline, Reranker};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::{Dialect::SageMaker, hugging_face, tei};
use crate::{
    answer::Answer,
    error::ApiError,
    model::State,
    routes::{Call, Operation, Routes},
};

const PATH: &str = "/invocations";

/// What every function has.
pub(crate) fn every<P: Pipeline>(routes: Routes<P>) -> Routes<P> {
    routes.with(Operation::get::<Empty, _, _>(
        SageMaker,
        "/ping",
        "200 if the model can answer, 503 if it cannot yet.",
        ping,
    ))
}

pub(crate) fn predict(routes: Routes<Classifier>) -> Routes<Classifier> {
    let predict =
        Operation::post(SageMaker, PATH, "All labels of texts.", hugging_face::classify_flat);
    routes.with(predict.example("text", json!({ "inputs": "What a film!" })))
}

pub(crate) fn embed(routes: Routes<Embedder>) -> Routes<Embedder> {
    let embed = Operation::post(SageMaker, PATH, "A vector for each text.", tei::vectors);
    routes.with(embed.example("text", json!({ "inputs": "What a film!" })))
}

pub(crate) fn rerank(routes: Routes<Reranker>) -> Routes<Reranker> {
    let summary = "Texts by how well they answer a query.";
    let rerank = Operation::post(SageMaker, PATH, summary, tei::ranked);
    routes.with(rerank.example("texts", tei::rerank_example()))
}

/// Nothing to say.
#[derive(Debug, Serialize, JsonSchema)]
struct Empty {}

async fn ping<P: Pipeline>(call: Call<P>) -> Result<Response, ApiError> {
    match call.endpoint.model.state() {
        State::Ready(_) => Answer::of(Empty {}).response(call.started),
        State::Loading => Err(ApiError::loading()),
        State::Failed(failure) => Err((&failure).into()),
    }
}
