//! The pages of a function, for people: `GET /` to try it, and `GET /docs` to read how it is asked.
//!
//! Each is one file, in the binary, that fetches nothing from elsewhere.

use axum::{
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use pipeline::Pipeline;
use schemars::JsonSchema;
use serde::Serialize;

use crate::{
    answer::Answer,
    dialect::Dialect,
    error::ApiError,
    routes::{Call, Operation, Routes},
    service::Service,
};

const PAGE: &str = include_str!("page.html");
const DOCS: &str = include_str!("docs.html");

/// Nothing from elsewhere, and nobody frames it.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'",
);

/// What every function has, with or without a model.
pub(crate) fn docs<P: Service>(routes: Routes<P>) -> Routes<P> {
    let docs = Operation::get::<String, _, _>(
        Dialect::Native,
        "/docs",
        "This document, for people.",
        async |_: Call<P>| Ok(page(DOCS)),
    );
    routes.with(docs.takes("text/html", |_| true))
}

/// What every function with a model has.
pub(crate) fn every<P: Pipeline>(routes: Routes<P>) -> Routes<P> {
    docs(routes).with(Operation::get::<Alive, _, _>(
        Dialect::KServe,
        "/",
        "A page to try the function, for browsers; for others, that it lives.",
        root,
    ))
}

/// What KServe's clients ask of `/`.
#[derive(Debug, Serialize, JsonSchema)]
struct Alive {
    status: &'static str,
}

async fn root<P: Pipeline>(call: Call<P>) -> Result<Response, ApiError> {
    let mut response = if wants_html(&call.headers) {
        page(PAGE)
    } else {
        Answer::of(Alive { status: "alive" }).response(call.started)?
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Whether it is a browser that asks.
fn wants_html(headers: &HeaderMap) -> bool {
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted.any(|accepted| accepted.contains("text/html"))
}

fn page(html: &'static str) -> Response {
    let html_type = HeaderValue::from_static("text/html; charset=utf-8");
    ([(CONTENT_TYPE, html_type), (CONTENT_SECURITY_POLICY, POLICY)], html).into_response()
}
