//! From a socket or an event to a handler and back: what every request of every function meets.

mod connection;
pub(crate) mod http;
pub(crate) mod lambda;
mod request;
mod stream;
mod upload;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
};

use self::upload::Bodies;
pub(crate) use self::upload::NoRoom;
use crate::{Config, error::ApiError, model::Model, service::Service};

/// State that requests of one process share.
#[derive(Debug, Clone)]
pub(crate) struct Edge(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    draining: AtomicBool,
    num_requests: AtomicUsize,
    max_concurrent_requests: usize,
    max_uri_bytes: usize,
    request_timeout: Duration,
    bodies: Arc<Bodies>,
}

/// A place among the requests that are being answered.
#[derive(Debug)]
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Edge {
    pub(crate) fn new(config: &Config) -> Self {
        Self(Arc::new(Shared {
            draining: AtomicBool::new(false),
            num_requests: AtomicUsize::new(0),
            max_concurrent_requests: config.max_concurrent_requests,
            max_uri_bytes: config.max_header_bytes / 2,
            request_timeout: config.request_timeout,
            bodies: Arc::new(Bodies::new(config.max_bodies_bytes)),
        }))
    }

    /// From now on new requests are refused; those in flight go on.
    fn drain(&self) {
        self.0.draining.store(true, Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// A place for one more request, without waiting.
    fn place(&self) -> Result<Place<'_>, ApiError> {
        let max_requests = self.0.max_concurrent_requests;
        let num_requests = self.0.num_requests.fetch_add(1, Relaxed);
        let place = Place(&self.0.num_requests);
        if num_requests < max_requests {
            return Ok(place);
        }
        let message = format!("{max_requests} requests are being answered already");
        Err(ApiError::overloaded(message, max_requests))
    }

    /// `routes` with what every request meets: errors in an envelope, a request id, a deadline and a
    /// log line.
    pub(crate) fn app<P: Service>(&self, routes: Router, model: Model<P>) -> Router {
        let state = (self.clone(), model);
        routes
            .fallback(no_such_path)
            .method_not_allowed_fallback(no_such_method)
            .layer(middleware::from_fn_with_state(state, request::answer::<P>))
            // Puts handlers and layers together now, not for every request.
            .with_state(())
    }
}

async fn no_such_path(uri: Uri) -> ApiError {
    ApiError::not_found("not_found", format!("there is nothing at {}", uri.path()))
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
