use std::path::PathBuf;

/// Why a model could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The address is not one this build can read; set another.
    #[error("MODEL_URI \"{uri}\": {reason}")]
    Uri {
        /// As it was given.
        uri: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file of the model is not there or cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `config.json` does not describe a model this build can serve.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A packed model could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The model is packed for another precision; open the export, or another bundle.
    #[error("the model is packed for {packed}; PRECISION={wanted} needs the export it was made of")]
    Precision {
        /// What it is packed for.
        packed: String,
        /// What was asked for.
        wanted: String,
    },
    /// The files are not the ones the address pins.
    #[error("model has sha256 {actual}, MODEL_URI pins {expected}")]
    Digest {
        /// What the address says, in hexadecimal.
        expected: String,
        /// What the files give, in hexadecimal.
        actual: String,
    },
}
