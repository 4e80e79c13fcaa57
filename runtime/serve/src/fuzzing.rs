//! How `tests/fuzz` reaches a function: without a socket. Only within a runtime of tokio.

use axum::Router;
use pipeline::Pipeline;

use crate::{
    Config, LoadError, Routes, dialect,
    edge::Edge,
    model::Model,
    run,
    service::Service,
    token::{self, Logins},
};

/// What [`run`](crate::run) would serve with `pipeline`.
pub fn app<P: Pipeline>(
    function: &'static str,
    config: Config,
    routes: fn(Routes<P>) -> Routes<P>,
    pipeline: P,
) -> Router {
    app_of(function, config, routes(dialect::every(Routes::new())), pipeline)
}

/// What [`token`](crate::token()) would serve.
///
/// # Errors
///
/// As it has them.
pub fn token(config: Config) -> Result<Router, LoadError> {
    let options = config.token.as_ref().ok_or("no settings of tokens")?;
    let logins = Logins::open(options, &config)?;
    Ok(app_of("token", config, token::routes(), logins))
}

fn app_of<S: Service>(
    function: &'static str,
    config: Config,
    routes: Routes<S>,
    service: S,
) -> Router {
    let model = Model::loading();
    model.set(Ok(service));
    let edge = Edge::new(&config);
    run::app(function, config, routes, model, &edge)
}
