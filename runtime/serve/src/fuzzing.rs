//! How `tests/fuzz` reaches a function: without a socket.

use axum::Router;
use pipeline::Pipeline;

use crate::{Config, Routes, dialect, edge::Edge, model::Model, run};

/// What [`run`](crate::run) would serve with `pipeline`. Only within a runtime of tokio.
pub fn app<P: Pipeline>(
    function: &'static str,
    config: Config,
    routes: fn(Routes<P>) -> Routes<P>,
    pipeline: P,
) -> Router {
    let model = Model::loading();
    model.set(Ok(pipeline));
    let edge = Edge::new(&config);
    run::app(function, config, routes(dialect::every(Routes::new())), model, &edge)
}
