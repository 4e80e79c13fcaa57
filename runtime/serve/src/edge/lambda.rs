//! AWS Lambda: function URLs and HTTP APIs (payload version 2), through the Runtime API.

use std::time::Duration;

use axum::{
    Router,
    body::Bytes,
    http::{Response, Uri},
};
use http_body_util::{BodyExt, Full};
use lambda_http::{Request, RequestExt, request::RequestContext, service_fn};
use tower::ServiceExt;

use crate::admit::Peer;

/// Polls Lambda and answers with `app` until the process ends.
pub(crate) async fn serve(app: Router) -> Result<(), lambda_http::Error> {
    lambda_http::run_concurrent(service_fn(move |request| answer(app.clone(), request))).await
}

/// Longest that an answer waits for its trace and metrics to be sent: with the answer, Lambda
/// freezes the process, for however long.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// One answer, whole: only streamed functions gain by sending it in pieces.
async fn answer(
    app: Router,
    request: Request,
) -> Result<Response<Full<Bytes>>, lambda_http::Error> {
    let Ok(response) = app.oneshot(with_peer(without_stage(request))).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    telemetry::flush(FLUSH_LIMIT).await;
    Ok(Response::from_parts(parts, Full::new(body)))
}

/// Tells where it came from, as AWS has seen it.
fn with_peer(mut request: Request) -> Request {
    let context = request.request_context_ref();
    let Some(RequestContext::ApiGatewayV2(context)) = context else { return request };
    let address = context.http.source_ip.as_deref().and_then(|address| address.parse().ok());
    if let Some(address) = address {
        request.extensions_mut().insert(Peer(address));
    }
    request
}

/// Takes the stage of an HTTP API (`/prod/predict`) off the path.
fn without_stage(mut request: Request) -> Request {
    let context = request.request_context_ref();
    let Some(RequestContext::ApiGatewayV2(context)) = context else { return request };
    let Some(stage) = context.stage.as_deref().filter(|stage| *stage != "$default") else {
        return request;
    };
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let rest = path.strip_prefix('/').and_then(|path| path.strip_prefix(stage));
    let rest = rest.filter(|rest| rest.starts_with('/'));
    if let Some(uri) = rest.and_then(|rest| rest.parse::<Uri>().ok()) {
        *request.uri_mut() = uri;
    }
    request
}
