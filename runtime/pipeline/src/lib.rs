//! From texts to labels, embeddings or a ranking, over any engine: tokenize, batch, forward, score.
//!
//! ```text
//! text ──> Queue ──> Tokenizer ──> Queue ──> Batch ──> Engine::forward ──> row ──> answer
//!                   (a thread a core)    (a thread an engine)
//! ```
//!
//! # Invariants
//!
//! - Knows neither which engine it drives nor that HTTP exists.
//! - The queue is bounded; whoever is not admitted is told at once.
//! - A caller that goes away before its forward pass costs none.
//! - A text that makes the tokenizer or the engine fail fails alone.
#![forbid(unsafe_code)]

mod activity;
mod ascii;
mod classify;
mod embed;
mod error;
mod labels;
mod queue;
mod rerank;
mod runner;
mod tokenize;
mod usage;
mod wordpiece;

use std::sync::Arc;

pub use activity::{Activity, BatchRun};
pub use classify::{Classifications, Classifier, ClassifyOptions, Scores};
pub use embed::{EmbedOptions, Embedder, Embeddings};
pub use error::PipelineError;
pub use labels::LabelScore;
pub use queue::BatchLimits;
pub use rerank::{Ranking, Reranker, TextScore};
pub use tokenize::{Text, Token, TokenLimits, Truncation};
pub use usage::{Timing, Usage};

/// Name and version of a model that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// As the model calls itself.
    pub name: Arc<str>,
    /// The first digits of the digest: equal versions are equal bytes.
    pub version: Arc<str>,
    /// SHA-256 of the model's files, in hexadecimal.
    pub digest: String,
    /// Most tokens of a text, special tokens included.
    pub max_input_tokens: usize,
}

/// What a pipeline is for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Task<'a> {
    /// Texts get labels.
    Classify {
        /// All that there are, in the model's order.
        labels: &'a [String],
    },
    /// Texts become vectors.
    Embed {
        /// Numbers in a whole vector.
        hidden_size: usize,
        /// Names of the prompts that may be put before a text.
        prompt_names: Vec<&'a str>,
        /// How hidden states become one vector, as the model says.
        pooling: Option<&'a str>,
    },
    /// Texts are ranked by how well they answer a query.
    Rerank {
        /// What the model calls its one score.
        label: &'a str,
    },
}

/// What the edge needs to know of every pipeline, whatever its task.
pub trait Pipeline: Clone + Send + Sync + 'static {
    /// The model that answers.
    fn model(&self) -> &ModelInfo;

    /// What it is for.
    fn task(&self) -> Task<'_>;

    /// What it does just now.
    fn activity(&self) -> Activity;

    /// Whether the device of its engine is lost: from then on every text is [`PipelineError::Lost`].
    fn is_lost(&self) -> bool;

    /// The tokens of the whole of `text`, however long, with those that the model adds to each text
    /// if `add_special_tokens`.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Tokenizer`].
    fn tokens(&self, text: &str, add_special_tokens: bool) -> Result<Vec<Token>, PipelineError>;

    /// The text that `ids` stand for; ids that there are not stand for nothing.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Tokenizer`].
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, PipelineError>;
}

/// [`Pipeline`] for what has a `runner`.
macro_rules! impl_pipeline {
    ($pipeline:ty, |$self:ident| $task:expr) => {
        impl $crate::Pipeline for $pipeline {
            fn model(&self) -> &$crate::ModelInfo {
                self.runner.info()
            }

            fn task(&self) -> $crate::Task<'_> {
                let $self = self;
                $task
            }

            fn activity(&self) -> $crate::Activity {
                self.runner.activity()
            }

            fn is_lost(&self) -> bool {
                self.runner.is_lost()
            }

            fn tokens(
                &self,
                text: &str,
                add_special_tokens: bool,
            ) -> Result<Vec<$crate::Token>, $crate::PipelineError> {
                self.runner.tokenizer().tokens(text, add_special_tokens)
            }

            fn decode(
                &self,
                ids: &[u32],
                skip_special_tokens: bool,
            ) -> Result<String, $crate::PipelineError> {
                self.runner.tokenizer().decode(ids, skip_special_tokens)
            }
        }
    };
}
use impl_pipeline;
