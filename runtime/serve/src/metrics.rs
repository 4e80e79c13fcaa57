//! `GET /metrics`, for Prometheus: on the port of the function, or on one of its own.

use axum::{
    Router,
    http::{
        HeaderMap,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::IntoResponse,
    routing::get,
};
use telemetry::TextFormat;

use crate::{dialect::Dialect, routes::About};

pub(crate) const PATH: &str = "/metrics";

/// What the OpenAPI document says of it.
pub(crate) fn about() -> About {
    About {
        dialect: Dialect::Native,
        method: "get",
        path: PATH,
        summary: "What the process has counted, for Prometheus.",
        is_call: false,
        media: "text/plain",
        request: None,
        response: |generator| generator.subschema_for::<String>(),
        examples: Vec::new(),
        error: None,
    }
}

pub(crate) fn router() -> Router {
    Router::new().route(PATH, get(scrape))
}

async fn scrape(headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = TextFormat::accepted(accept);
    ([(CONTENT_TYPE, format.content_type())], telemetry::scrape(format))
}
