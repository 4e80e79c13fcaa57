//! The model of a process: loaded at its start, and again when there is a newer version.

use std::{
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::Instant,
};

use pipeline::{ModelInfo, Pipeline};
use telemetry::{Causes, Gauge, METRICS};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::spawn_blocking,
};
use weights::{Bundle, WeightsError};

use crate::{
    Config,
    config::Reload,
    model::{LoadFailure, Model, State},
};

/// Why a pipeline could not be loaded.
pub type LoadError = Box<dyn Error + Send + Sync>;

/// Makes the pipeline of a function.
pub(crate) type Load<P> = fn(&Bundle, &Config) -> Result<P, LoadError>;

/// Loads `model` on a thread of its own, and looks for newer versions as the settings say.
pub(crate) fn start<P: Pipeline>(
    config: Config,
    load: Load<P>,
    model: Model<P>,
) -> std::io::Result<()> {
    // A signal that comes while the model loads is not lost, nor does it end the process.
    let hangup = match config.model_reload {
        Reload::Sighup => Some(signal(SignalKind::hangup())?),
        Reload::Off | Reload::Poll(_) => None,
    };
    let runtime = tokio::runtime::Handle::current();
    let first = move || {
        let reload = config.model_reload != Reload::Off;
        let mut revision = if reload { revision(&config) } else { None };
        if replace(&config, load, &model) == Replaced::NotYet {
            revision = None;
        }
        if reload {
            runtime.spawn(follow(config, load, model, revision, hangup));
        }
    };
    thread::Builder::new().name("load".to_owned()).spawn(first).map(drop)
}

/// Replaces the model by newer versions, as long as the process runs.
async fn follow<P: Pipeline>(
    config: Config,
    load: Load<P>,
    model: Model<P>,
    mut revision: Option<String>,
    mut hangup: Option<Signal>,
) {
    loop {
        wait(&config.model_reload, &mut hangup).await;
        let (config, model, known) = (config.clone(), model.clone(), revision.clone());
        let reloaded = spawn_blocking(move || reload(&config, load, &model, known)).await;
        if let Ok(now) = reloaded {
            revision = now;
        }
    }
}

async fn wait(reload: &Reload, hangup: &mut Option<Signal>) {
    match (reload, hangup) {
        (Reload::Poll(interval), _) => tokio::time::sleep(*interval).await,
        (_, Some(hangup)) => drop(hangup.recv().await),
        (_, None) => std::future::pending().await,
    }
}

/// Loads what is there now, if it is not `known`; gives what is known now. A version that does not
/// load is not tried again; one that could not be fetched is.
fn reload<P: Pipeline>(
    config: &Config,
    load: Load<P>,
    model: &Model<P>,
    known: Option<String>,
) -> Option<String> {
    let Some(current) = revision(config) else { return known };
    if known.as_ref() == Some(&current) {
        return known;
    }
    match replace(config, load, model) {
        Replaced::Settled => Some(current),
        Replaced::NotYet => known,
    }
}

/// Whether what was found will be the same another time.
#[derive(Debug, PartialEq, Eq)]
enum Replaced {
    /// It was loaded, or is refused.
    Settled,
    /// It could not be fetched.
    NotYet,
}

/// Loads what is there, in the place of what `model` has; a failure replaces nothing that answers.
fn replace<P: Pipeline>(config: &Config, load: Load<P>, model: &Model<P>) -> Replaced {
    let outcome = load_model(config, load);
    let may_pass = outcome.as_ref().is_err_and(|failure| failure.may_pass);
    let before = match model.state() {
        State::Ready(pipeline) => Some(pipeline),
        State::Loading | State::Failed(_) => None,
    };
    if outcome.is_err() && before.is_some() {
        tracing::warn!("the version before goes on");
    } else {
        if let Some(before) = before {
            model_info(before.model()).set(0.0);
        }
        if let Ok(pipeline) = &outcome {
            model_info(pipeline.model()).set(1.0);
        }
        model.set(outcome);
    }
    if may_pass { Replaced::NotYet } else { Replaced::Settled }
}

fn revision(config: &Config) -> Option<String> {
    match Bundle::revision(&config.model_uri, &config.model_options) {
        Ok(revision) => Some(revision),
        Err(error) => {
            tracing::warn!(exception = %Causes(&error), "no newer model is found");
            None
        }
    }
}

fn model_info(model: &ModelInfo) -> &'static Gauge {
    METRICS.model_info.with([&model.name, &model.version, &model.digest])
}

/// Loads the pipeline and says in the log how it went.
pub(crate) fn load_model<P: Pipeline>(config: &Config, load: Load<P>) -> Result<P, LoadFailure> {
    let started = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let bundle = Bundle::open(&config.model_uri, &config.model_options)?;
        load(&bundle, config)
    }));
    match outcome.unwrap_or_else(|_| Err("loading panicked".into())) {
        Ok(pipeline) => {
            let model = pipeline.model();
            let load_ms = started.elapsed().as_secs_f64() * 1e3;
            for status in ["success", "error"] {
                METRICS.predictions_total.with([&model.name, status]);
            }
            tracing::info!(model = &*model.name, version = &*model.version, load_ms, "model ready");
            Ok(pipeline)
        }
        Err(error) => {
            METRICS.model_load_failures_total.with([]).add(1);
            tracing::error!(
                exception = %Causes(&*error),
                model_uri = config.model_uri,
                "no model"
            );
            Err(LoadFailure { reason: error.to_string(), may_pass: may_pass(&*error) })
        }
    }
}

/// Whether loading failed on the way, not because of what was found.
fn may_pass(mut error: &(dyn Error + 'static)) -> bool {
    loop {
        // All who wait for weights get the same error.
        let shared = error.downcast_ref::<Arc<WeightsError>>().map(AsRef::as_ref);
        if let Some(WeightsError::Transfer { .. }) = shared.or_else(|| error.downcast_ref()) {
            return true;
        }
        let Some(source) = error.source() else { return false };
        error = source;
    }
}
