use axum::{
    Json,
    extract::State,
    http::{StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use pipeline::Pipeline;
use serde::Serialize;

use crate::{Model, model::State as Known};

#[derive(Debug, Serialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Health<'a> {
    Healthy { model: &'a str, version: &'a str },
    Loading,
    Unavailable { reason: String },
}

/// `GET /health`: 200 when the model can answer, else 503 and why not.
pub(crate) async fn health<P: Pipeline>(State(model): State<Model<P>>) -> Response {
    match model.state() {
        Known::Ready(pipeline) => {
            let model = pipeline.model();
            Json(Health::Healthy { model: &model.name, version: &model.version }).into_response()
        }
        Known::Failed(failure) => {
            let health = Health::Unavailable { reason: failure.to_string() };
            (StatusCode::SERVICE_UNAVAILABLE, Json(health)).into_response()
        }
        Known::Loading => {
            let retry_after = [(RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, retry_after, Json(Health::Loading)).into_response()
        }
    }
}
