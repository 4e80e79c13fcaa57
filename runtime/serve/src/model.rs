use std::sync::Arc;

use tokio::sync::watch;

use crate::error::ApiError;

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
    Failed(LoadFailure),
}

/// The model does not answer; what its log line says in one sentence.
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

impl<P: Clone> Model<P> {
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
            Err(failure) => State::Failed(failure),
        });
    }

    /// What is known now.
    pub(crate) fn state(&self) -> State<P> {
        self.state.borrow().clone()
    }

    /// Waits until the pipeline can answer. The caller bounds the wait.
    pub(crate) async fn ready(&self) -> Result<P, ApiError> {
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| !matches!(state, State::Loading)).await;
        match state.as_deref() {
            Ok(State::Ready(pipeline)) => Ok(pipeline.clone()),
            Ok(State::Failed(failure)) => Err(failure.into()),
            Ok(State::Loading) | Err(_) => Err(ApiError::loading()),
        }
    }
}
