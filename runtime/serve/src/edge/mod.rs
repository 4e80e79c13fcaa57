//! From a socket or an event to a handler and back: what every request of every function meets.

pub(crate) mod http;
pub(crate) mod lambda;
mod request;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
    routing::get,
};
use pipeline::Pipeline;

use crate::{Config, Model, endpoint, error::ApiError};

/// State that requests of one process share.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    draining: Arc<AtomicBool>,
    request_timeout: Duration,
}

impl Edge {
    pub(crate) fn new(config: &Config) -> Self {
        Self { draining: Arc::new(AtomicBool::new(false)), request_timeout: config.request_timeout }
    }

    /// From now on new requests are refused; those in flight go on.
    fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// `routes` with what every function has: `/health`, errors in the envelope, a request id, a
    /// deadline and a log line.
    pub(crate) fn app<P: Pipeline>(&self, routes: Router, model: Model<P>) -> Router {
        let health =
            Router::new().route("/health", get(endpoint::health::<P>)).with_state(model.clone());
        let state = (self.clone(), model);
        routes
            .merge(health)
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
            .layer(middleware::from_fn_with_state(state, request::answer::<P>))
    }
}

async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {}", uri.path()))
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
