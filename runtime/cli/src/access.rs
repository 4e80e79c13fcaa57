use std::ffi::OsString;

use telemetry::Secret;
use weights::Access;

/// How stores are reached. AWS_* variables are read besides, as all tools of AWS do.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The Hugging Face hub, or what stands in for it
    #[arg(long, global = true, value_name = "URL", env = "HF_ENDPOINT")]
    hf_endpoint: Option<String>,
    /// Token of the hub, for models that are not public
    #[arg(long, global = true, value_name = "TOKEN", env = "HF_TOKEN", hide_env_values = true)]
    hf_token: Option<String>,
    /// PEM file of certificates to trust besides the system's
    #[arg(long, global = true, value_name = "FILE", env = "AWS_CA_BUNDLE")]
    ca_bundle: Option<OsString>,
}

impl From<Arguments> for Access {
    /// Variables that are set to nothing count as unset.
    fn from(arguments: Arguments) -> Self {
        let unset = Self::default();
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Self {
            hf_endpoint: given(arguments.hf_endpoint).unwrap_or(unset.hf_endpoint),
            hf_token: given(arguments.hf_token).map(Secret::new),
            ca_bundle: arguments.ca_bundle.filter(|path| !path.is_empty()).map(Into::into),
        }
    }
}
