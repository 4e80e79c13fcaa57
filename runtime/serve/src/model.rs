use std::sync::Arc;

use tokio::sync::SetOnce;

use crate::error::ApiError;

/// A pipeline that may still be loading.
#[derive(Debug)]
pub struct Model<P> {
    loaded: Arc<SetOnce<Result<P, LoadFailure>>>,
}

/// The model will never answer; what its log line says in one sentence.
#[derive(Debug, thiserror::Error)]
#[error("the model could not be loaded: {reason}")]
pub(crate) struct LoadFailure {
    pub(crate) reason: String,
}

// Not derived, which would ask for `P: Clone`.
impl<P> Clone for Model<P> {
    fn clone(&self) -> Self {
        Self { loaded: self.loaded.clone() }
    }
}

impl<P> Model<P> {
    pub(crate) fn loading() -> Self {
        Self { loaded: Arc::new(SetOnce::new()) }
    }

    /// Ends the wait of every request. Only the first call counts.
    pub(crate) fn set(&self, outcome: Result<P, LoadFailure>) {
        let _ = self.loaded.set(outcome);
    }

    /// What is known now; `None` while it loads.
    pub(crate) fn state(&self) -> Option<&Result<P, LoadFailure>> {
        self.loaded.get()
    }

    /// Waits until the pipeline can answer. The caller bounds the wait.
    pub(crate) async fn ready(&self) -> Result<&P, ApiError> {
        self.loaded.wait().await.as_ref().map_err(ApiError::from)
    }
}
