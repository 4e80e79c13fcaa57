use std::{io::Write, process::ExitCode};

use pipeline::Pipeline;
use telemetry::Causes;
use tokio::signal::unix::{SignalKind, signal};
use weights::Bundle;

use crate::{
    Config,
    admit::Gate,
    config::{Help, Platform},
    dialect,
    edge::{self, Edge},
    endpoint::Endpoint,
    load::{self, Load, LoadError, load_model},
    model::Model,
    routes::Routes,
};

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
    telemetry::started();
    let argument = std::env::args().nth(1);
    let check = match argument.as_deref() {
        None => false,
        Some("--check") => true,
        Some("--help" | "-h") => return print(&Help(function)),
        Some("--version" | "-V") => {
            return print(&format!("{function} {}\n", env!("CARGO_PKG_VERSION")));
        }
        Some(other) => {
            return refuse(&format!("unknown argument \"{other}\"; see {function} --help"));
        }
    };
    let config = match Config::from_env(function) {
        Ok(config) => config,
        Err(error) => return refuse(&error.to_string()),
    };
    if let Err(error) = telemetry::init(config.log_format, &config.log_filter) {
        return refuse(&format!("RUST_LOG: {error}"));
    }
    if check {
        return if load_model(&config, load).is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    match serve(function, config, routes, load) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %Causes(&*error), "stopped");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve<P: Pipeline>(
    function: &'static str,
    config: Config,
    routes: fn(Routes<P>) -> Routes<P>,
    load: Load<P>,
) -> Result<(), LoadError> {
    let stop = stop_signal()?;
    let edge = Edge::new(&config);
    let model = Model::loading();
    let endpoint = Endpoint::new(function, model.clone(), config.clone());
    let gate = Gate::new(function, &config);
    let router = routes(dialect::every(Routes::new())).into_router(&endpoint, &gate);
    let app = edge.app(router, model.clone());
    let platform = config.platform;
    load::start(config.clone(), load, model)?;
    match platform {
        Platform::Http { port } => {
            let listener = edge::http::listen(port)?;
            tracing::info!(address = %listener.local_addr()?, "listening");
            edge::http::serve(listener, app, edge, &config, stop).await;
        }
        Platform::Lambda => tokio::select! {
            ended = edge::lambda::serve(app) => ended?,
            () = stop => {}
        },
    }
    tracing::info!("stopped");
    Ok(())
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

fn refuse(message: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{message}");
    ExitCode::from(2)
}
