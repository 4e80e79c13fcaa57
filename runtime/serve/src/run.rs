use std::{io::Write, process::ExitCode, time::Duration};

use axum::Router;
use pipeline::Pipeline;
use telemetry::{Causes, cloudwatch, push, trace};
use tokio::signal::unix::{SignalKind, signal};
use weights::Bundle;

use crate::{
    Config,
    admit::Gate,
    config::{Help, Platform},
    dialect,
    edge::{self, Edge},
    endpoint::Endpoint,
    load::{self, LoadError, load_model},
    metrics,
    model::Model,
    routes::Routes,
    service::Service,
};

/// Longest that the end of a process waits for its last traces and metrics to be sent.
const LAST_FLUSH: Duration = Duration::from_secs(5);

/// Runs `function` from the command line to the end of the process.
///
/// `load` makes the pipeline from the model and the settings, on a thread of its own; `routes` adds
/// what the function answers to what every function does. SIGTERM and SIGINT let what is in flight end.
///
/// Exit codes: 0 after a signal, `--help`, `--version` or a good `--check`; 1 if the port cannot be
/// opened or `--check` finds a bad model; 2 for bad settings or arguments.
pub fn run<P: Pipeline>(
    function: &'static str,
    routes: fn(Routes<P>) -> Routes<P>,
    load: fn(&Bundle, &Config) -> Result<P, LoadError>,
) -> ExitCode {
    let (config, action) = match begin(function) {
        Ok(begun) => begun,
        Err(end) => return end,
    };
    if action == Action::Check {
        let checked = load_model(&config, load);
        return if checked.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let model = Model::loading();
    let routes = routes(dialect::every(Routes::new()));
    end(serve(function, config, routes, model.clone(), |config| load::start(config, load, model)))
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Serve,
    Check,
}

/// Settings and what to do with them; or the end of a process that has no more to do.
pub(crate) fn begin(function: &'static str) -> Result<(Config, Action), ExitCode> {
    telemetry::started();
    let argument = std::env::args().nth(1);
    let action = match argument.as_deref() {
        None => Action::Serve,
        Some("--check") => Action::Check,
        Some("--help" | "-h") => return Err(print(&Help(function))),
        Some("--version" | "-V") => {
            return Err(print(&format!("{function} {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Some(other) => {
            return Err(refuse(&format!("unknown argument \"{other}\"; see {function} --help")));
        }
    };
    let config = Config::from_env(function).map_err(|error| refuse(&error.to_string()))?;
    telemetry::init(function, config.log_format, &config.log_filter)
        .map_err(|error| refuse(&format!("RUST_LOG: {error}")))?;
    Ok((config, action))
}

/// How a process ends that has served.
pub(crate) fn end(outcome: Result<(), LoadError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(exception = %Causes(&*error), "stopped");
            ExitCode::FAILURE
        }
    }
}

/// Answers `routes` until a signal comes; `load` begins to load the model.
#[tokio::main]
pub(crate) async fn serve<P: Service>(
    function: &'static str,
    config: Config,
    routes: Routes<P>,
    model: Model<P>,
    load: impl FnOnce(Config) -> std::io::Result<()>,
) -> Result<(), LoadError> {
    let stop = stop_signal()?;
    let edge = Edge::new(&config);
    let app = app(function, config.clone(), routes, model, &edge);
    let platform = config.platform;
    let _gathering = match platform {
        Platform::Http { .. } => Some(telemetry::gather_lines()?),
        // It freezes the process between requests, and what waits with it.
        Platform::Lambda => None,
    };
    if let Some(settings) = config.traces.clone() {
        trace::start(function, settings)?;
    }
    if let Some(settings) = config.metrics_push.clone() {
        push::start(function, settings)?;
    }
    if let Some(namespace) = config.metrics_namespace.clone() {
        cloudwatch::start(function, namespace);
    }
    load(config.clone())?;
    match platform {
        Platform::Http { port } => {
            let listener = edge::http::listen(port)?;
            tracing::info!(address = %listener.local_addr()?, "listening");
            if let Some(port) = config.metrics_port {
                let listener = edge::http::listen(port)?;
                tracing::info!(address = %listener.local_addr()?, "listening for scrapes");
                tokio::spawn(edge::http::serve_always(listener, metrics::router(), config.clone()));
            }
            edge::http::serve(listener, app, edge, &config, stop).await;
        }
        Platform::Lambda => tokio::select! {
            ended = edge::lambda::serve(app) => ended?,
            () = stop => {}
        },
    }
    telemetry::flush(LAST_FLUSH).await;
    tracing::info!("stopped");
    Ok(())
}

/// All that answers a request, once somebody has read its head.
pub(crate) fn app<P: Service>(
    function: &'static str,
    config: Config,
    routes: Routes<P>,
    model: Model<P>,
    edge: &Edge,
) -> Router {
    let gate = Gate::new(function, &config);
    let endpoint = Endpoint::new(function, model.clone(), config);
    edge.app(routes.into_router(&endpoint, &gate), model)
}

/// Ends at the first SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>, LoadError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn print(text: &dyn std::fmt::Display) -> ExitCode {
    // A closed pipe (`--help | head`) is nobody's mistake.
    let _ = write!(std::io::stdout(), "{text}");
    ExitCode::SUCCESS
}

pub(crate) fn refuse(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(2)
}
