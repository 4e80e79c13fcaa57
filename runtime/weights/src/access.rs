use std::{fs, io, path::PathBuf};

use telemetry::Secret;

/// What stores are opened with, besides what AWS' own libraries read from the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The Hugging Face hub, or what stands in for it.
    pub hf_endpoint: String,
    /// A token of the hub, for models that are not public.
    pub hf_token: Option<Secret>,
    /// PEM file of certificates that are trusted besides the system's.
    pub ca_bundle: Option<PathBuf>,
}

impl Default for Access {
    fn default() -> Self {
        Self { hf_endpoint: "https://huggingface.co".to_owned(), hf_token: None, ca_bundle: None }
    }
}

impl Access {
    pub(crate) fn ca_bundle(&self) -> io::Result<Option<Vec<u8>>> {
        self.ca_bundle.as_ref().map(fs::read).transpose()
    }
}
