//! From texts to labels, embeddings or a ranking, over any engine: tokenize, batch, forward, score.
//!
//! ```text
//! text ──> Queue ──> Tokenizer ──> Queue ──> Batch ──> Engine::forward ──> row ──> answer
//!                   (a thread a core)       (one thread)
//! ```
//!
//! # Invariants
//!
//! - Knows neither which engine it drives nor that HTTP exists.
//! - The queue is bounded; whoever is not admitted is told at once.
//! - A caller that goes away before its forward pass costs none.
//! - A text that makes the tokenizer or the engine fail fails alone.
#![forbid(unsafe_code)]

mod ascii;
mod classify;
mod embed;
mod error;
mod labels;
mod queue;
mod rerank;
mod runner;
mod tokenize;
mod wordpiece;

pub use classify::{Classification, Classifier};
pub use embed::{EmbedOptions, Embedder, Embeddings};
pub use error::PipelineError;
pub use labels::LabelScore;
pub use queue::BatchLimits;
pub use rerank::{Ranking, Reranker, TextScore};
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
