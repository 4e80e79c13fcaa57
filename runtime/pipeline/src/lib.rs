//! From text to labels, over any engine: tokenize, batch, forward, score.
//!
//! ```text
//! text ──> Tokenizer ──> Encoding ──> Batcher ──> logits ──> scores, best first
//!                                        │
//!                                        └─> its own thread ──> Engine::forward
//! ```
//!
//! # Invariants
//!
//! - Knows neither which engine it drives nor that HTTP exists.
//! - The queue is bounded; whoever is not admitted is told at once.
//! - A caller that goes away before its forward pass costs none.
#![forbid(unsafe_code)]

mod batch;
mod classify;
mod error;
mod labels;
mod tokenize;
mod wordpiece;

pub use batch::BatchLimits;
pub use classify::{Classification, Classifier};
pub use error::PipelineError;
pub use labels::LabelScore;
pub use tokenize::{TokenLimits, Truncation};

/// Name and version of a model that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// As the model calls itself.
    pub name: String,
    /// A digest: equal versions are equal bytes.
    pub version: String,
}

/// What the edge needs to know of every pipeline, whatever its task.
pub trait Pipeline: Clone + Send + Sync + 'static {
    /// The model that answers.
    fn model(&self) -> &ModelInfo;
}
