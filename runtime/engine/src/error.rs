use std::error::Error;

/// Why an engine gave no result.
///
/// Variants are cut by what the *caller* does next: retry elsewhere, or report a bug. Status codes
/// are chosen in `serve::error` only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A tensor has the wrong length: the model is not what its description says, or a bug.
    #[error("{tensor}: expected shape {expected:?}, got {actual_len} elements")]
    ShapeMismatch {
        /// Name of the tensor.
        tensor: &'static str,
        /// Shape the callee needs.
        expected: Vec<usize>,
        /// Elements it was given.
        actual_len: usize,
    },
    /// The batch holds what the model has no weights for: tokenizer and model do not fit.
    #[error("{reason}")]
    Input {
        /// What was asked for, and what there is.
        reason: String,
    },
    /// The model asks for something this engine does not know; another engine may.
    #[error("unsupported model: {reason}")]
    Unsupported {
        /// What was asked for, and what is known.
        reason: String,
    },
    /// The device has failed, and will fail again whatever it is asked: end the process, retry on
    /// another instance.
    #[error("the device of the {engine} engine is lost")]
    Lost {
        /// `"gpu"`.
        engine: &'static str,
        /// What the device said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The device or library below failed; retry on another instance.
    #[error("{engine} engine failed")]
    Backend {
        /// `"tract"`.
        engine: &'static str,
        /// What the library said.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}
