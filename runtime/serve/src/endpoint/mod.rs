//! What a function answers, one file an endpoint.

pub mod embed;
mod health;
pub mod predict;
pub mod rerank;
mod texts;

pub(crate) use health::health;

use crate::{Config, Model};

/// What the handlers of an endpoint share.
#[derive(Debug, Clone)]
pub struct Endpoint<P> {
    pub(crate) model: Model<P>,
    pub(crate) max_body_bytes: usize,
    pub(crate) max_client_batch_size: usize,
    pub(crate) max_input_chars: usize,
}

impl<P> Endpoint<P> {
    pub(crate) fn new(model: Model<P>, config: &Config) -> Self {
        Self {
            model,
            max_body_bytes: config.max_body_bytes,
            max_client_batch_size: config.max_client_batch_size,
            max_input_chars: config.max_input_chars,
        }
    }
}
