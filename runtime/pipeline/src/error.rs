use std::{error::Error, sync::Arc};

use engine::EngineError;

/// Why a text got no answer, cut by what the caller does next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// Too many requests wait already; come back later.
    #[error("{max_queue_requests} requests wait already")]
    QueueFull {
        /// Requests that may wait.
        max_queue_requests: usize,
    },
    /// The text is over the limit and truncation is off; send less.
    #[error("has more than {max_input_tokens} tokens")]
    TooManyTokens {
        /// Which of the texts.
        index: usize,
        /// Tokens that are allowed, special tokens included.
        max_input_tokens: usize,
    },
    /// The limit on tokens leaves no room for a text; raise it.
    #[error("limit is {max_input_tokens} tokens, {num_special} of them special")]
    NoRoom {
        /// Tokens that are allowed.
        max_input_tokens: usize,
        /// Tokens that the model adds to every text.
        num_special: usize,
    },
    /// More labels were asked for than there are; ask for fewer.
    #[error("top_k is {top_k}, the model has {num_labels} labels")]
    TopK {
        /// Labels asked for.
        top_k: usize,
        /// Labels of the model.
        num_labels: usize,
    },
    /// More dimensions were asked for than there are; ask for fewer.
    #[error("dimensions is {dimensions}, the model has {hidden_size}")]
    Dimensions {
        /// Dimensions asked for.
        dimensions: usize,
        /// Dimensions of the model.
        hidden_size: usize,
    },
    /// The model has no such prompt; ask for another.
    #[error("there is no prompt \"{name}\"; known are {known:?}")]
    Prompt {
        /// Name asked for.
        name: String,
        /// Names of the model's prompts.
        known: Vec<String>,
    },
    /// The model's files do not fit together; replace them.
    #[error("model {model}: {reason}")]
    Model {
        /// Name of the model.
        model: String,
        /// What does not fit.
        reason: String,
    },
    /// The system gave no thread to run the engine on.
    #[error("cannot start the engine's thread")]
    Thread(#[source] std::io::Error),
    /// The tokenizer failed.
    #[error("tokenizer failed")]
    Tokenizer(#[source] Box<dyn Error + Send + Sync>),
    /// The engine failed on the batch that held the text.
    #[error("engine failed")]
    Engine(#[source] Arc<EngineError>),
    /// The device of the engine has failed for good; another instance may answer.
    #[error("the device that runs the model is lost")]
    Lost(#[source] Arc<EngineError>),
    /// The model gave a number that is not finite.
    #[error("model {model} gave a number that is not finite")]
    NotFinite {
        /// Name of the model.
        model: String,
    },
    /// The engine's thread is gone; another instance may answer.
    #[error("the engine has stopped")]
    Stopped,
}

impl PipelineError {
    /// The same, of text `index`.
    pub(crate) fn at(self, index: usize) -> Self {
        match self {
            Self::TooManyTokens { max_input_tokens, .. } => {
                Self::TooManyTokens { index, max_input_tokens }
            }
            other => other,
        }
    }
}
