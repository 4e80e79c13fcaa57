use std::path::PathBuf;

use engine::{EngineError, Precision};
use weights::WeightsError;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// A model cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The engine cannot pack or run it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It is packed already.
    #[error("{0} is packed already: pack the export it was made of")]
    Packed(String),
    /// There is nothing to compare.
    #[error("{}: {reason}", path.display())]
    Calibration { path: PathBuf, reason: String },
    /// A text cannot be tokenized.
    #[error("tokenizer.json")]
    Tokenizer(#[source] tokenizers::Error),
    /// It answers otherwise than the exported model.
    #[error("{precision} loses too much: {loss}; --force packs it nevertheless")]
    Loss { precision: Precision, loss: String },
    /// A function cannot be called that.
    #[error("{0:?} is no name of a function: use up to 63 of a-z, 0-9 and -, a letter first")]
    Name(String),
    /// A function cannot be written.
    #[error("{}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    /// There is no password.
    #[error("no password")]
    Password(#[source] std::io::Error),
    /// It cannot be hashed.
    #[error("the password cannot be hashed: {0}")]
    Hash(String),
    /// The report cannot be written.
    #[error("standard output")]
    Report(#[from] std::io::Error),
}
