use std::{error::Error, path::PathBuf};

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
    /// There is no such file.
    #[error("there is no {address}")]
    Missing {
        /// The file, or what it should be part of.
        address: String,
    },
    /// The store does not give the file to these credentials.
    #[error("no permission for {address}: {reason}")]
    Denied {
        /// The file.
        address: String,
        /// What the store said.
        reason: String,
    },
    /// The file is not the one it was when reading began.
    #[error("{address} was replaced while it was read")]
    Replaced {
        /// The file.
        address: String,
    },
    /// The store did not give the file, however often it was asked.
    #[error("cannot transfer {address}")]
    Transfer {
        /// The file.
        address: String,
        /// What happened last.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    /// The bytes are not those that the manifest names.
    #[error("{part} is damaged: its sha256 is {actual}, the manifest says {expected}")]
    Damaged {
        /// The file, or the tensor.
        part: String,
        /// In hexadecimal.
        expected: String,
        /// In hexadecimal.
        actual: String,
    },
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// `config.json` or `manifest.json` does not describe a model this build can serve.
    #[error("{address}: {reason}")]
    Config {
        /// The file.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
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
