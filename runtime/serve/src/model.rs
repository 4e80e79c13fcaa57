use std::sync::Arc;

use tokio::sync::watch;

use crate::{error::ApiError, service::Service};

/// A pipeline that may still be loading, and may be replaced by a newer one.
#[derive(Debug)]
pub(crate) struct Model<P> {
    state: Arc<watch::Sender<State<P>>>,
}

/// What is known of a model.
#[derive(Debug, Clone)]
pub(crate) enum State<P> {
    Loading,
    Ready(P),
    /// It does not answer, unless a later version does.
    Failed(Failure),
}

/// Why the model does not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Load(LoadFailure),
    /// Another process may have more luck.
    #[error("the device that runs the model is lost")]
    Lost,
}

/// What the log line of a model that did not load says, in one sentence.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the model could not be loaded: {reason}")]
pub(crate) struct LoadFailure {
    pub(crate) reason: String,
    /// Whether it may work another time.
    pub(crate) may_pass: bool,
}

// Not derived, which would ask for `P: Clone`.
impl<P> Clone for Model<P> {
    fn clone(&self) -> Self {
        Self { state: self.state.clone() }
    }
}

impl<P: Service> Model<P> {
    pub(crate) fn loading() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::Loading)) }
    }

    /// From now on requests get this; those under way end with what they have.
    pub(crate) fn set(&self, outcome: Result<P, LoadFailure>) {
        if outcome.is_ok() {
            telemetry::ready();
        }
        // What it replaces is dropped behind the lock: threads may have to end.
        let _replaced = self.state.send_replace(match outcome {
            Ok(pipeline) => State::Ready(pipeline),
            Err(failure) => State::Failed(Failure::Load(failure)),
        });
    }

    /// What is known now.
    pub(crate) fn state(&self) -> State<P> {
        match self.state.borrow().clone() {
            State::Ready(service) if service.is_lost() => State::Failed(Failure::Lost),
            state => state,
        }
    }

    /// Waits until the pipeline can answer. The caller bounds the wait.
    pub(crate) async fn ready(&self) -> Result<P, ApiError> {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| !matches!(state, State::Loading)).await;
        match self.state() {
            State::Ready(pipeline) => Ok(pipeline),
            State::Failed(failure) => Err((&failure).into()),
            State::Loading => Err(ApiError::loading()),
        }
    }
}
