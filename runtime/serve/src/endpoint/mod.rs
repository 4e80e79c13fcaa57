//! What a function does, one file an endpoint: the limits that hold for every caller, then the
//! pipeline. How it is asked, and how the answer is written, is the dialects'.

mod embed;
mod predict;
mod rerank;
mod texts;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use pipeline::Pipeline;
pub use texts::Texts;
use tokio::task::spawn_blocking;

use crate::{
    Config,
    error::ApiError,
    model::{Model, State},
    service::Service,
};

/// What handlers answer with: a model behind the limits of its function.
#[derive(Debug, Clone)]
pub struct Endpoint<P> {
    pub(crate) function: &'static str,
    pub(crate) model: Model<P>,
    pub(crate) config: Arc<Config>,
    /// When this process started, in seconds since 1970.
    pub(crate) started_secs: u64,
}

impl<P: Service> Endpoint<P> {
    pub(crate) fn new(function: &'static str, model: Model<P>, config: Config) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let started_secs = now.map_or(0, |since| since.as_secs());
        Self { function, model, config: Arc::new(config), started_secs }
    }

    /// What answers, when it can.
    ///
    /// # Errors
    ///
    /// 503 if it could not be loaded.
    pub(crate) async fn service(&self) -> Result<P, ApiError> {
        self.model.ready().await
    }

    /// Runs `work` where no other request waits for it.
    ///
    /// # Errors
    ///
    /// 503 if it could not be loaded; 500 if `work` panics.
    pub(crate) async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&P) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let service = self.service().await?;
        match spawn_blocking(move || work(&service)).await {
            Ok(done) => Ok(done),
            Err(_) => Err(ApiError::internal()),
        }
    }

    /// Whether callers may ask for the model by `name`: its own, or the function's.
    ///
    /// # Errors
    ///
    /// 404 if the model is known, and is another.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), ApiError> {
        match self.model.state() {
            _ if name == self.function => Ok(()),
            State::Ready(service) if *service.info().name != *name => {
                Err(ApiError::no_such_model(name))
            }
            _ => Ok(()),
        }
    }
}

impl<P: Pipeline> Endpoint<P> {
    /// The pipeline itself, when it can answer. It knows no limit but its queue's.
    ///
    /// # Errors
    ///
    /// 503 if the model could not be loaded.
    pub async fn pipeline(&self) -> Result<P, ApiError> {
        self.service().await
    }
}
