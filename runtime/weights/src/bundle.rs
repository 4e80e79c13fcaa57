use std::{fs, path::Path};

use sha2::{Digest, Sha256};

use crate::{WeightsError, config::ModelConfig, uri};

/// Hexadecimal digits of the digest that name a version.
const VERSION_DIGITS: usize = 12;

/// One version of one model: an exported folder with `model.onnx`, `tokenizer.json` and
/// `config.json`.
#[derive(Debug)]
pub struct Bundle {
    name: String,
    version: String,
    labels: Vec<String>,
    max_position_embeddings: usize,
    graph: Vec<u8>,
    tokenizer: Vec<u8>,
}

impl Bundle {
    /// Reads the model at `model_uri`: a path or `file:///path`; with `#sha256=…` behind it, only
    /// if that is the digest of `model.onnx`, `tokenizer.json` and `config.json`, one after the
    /// other.
    ///
    /// # Errors
    ///
    /// [`WeightsError`], naming the file or the part of the address that is wrong.
    pub fn open(model_uri: &str) -> Result<Self, WeightsError> {
        let uri::ModelUri { folder, sha256 } = uri::parse(model_uri)?;
        let config_json = read(&folder.join("config.json"))?;
        let tokenizer = read(&folder.join("tokenizer.json"))?;
        let graph = read(&folder.join("model.onnx"))?;

        let actual = sha256_hex([&graph, &tokenizer, &config_json]);
        if let Some(expected) = sha256.filter(|expected| *expected != actual) {
            return Err(WeightsError::Digest { expected, actual });
        }

        let refuse = |reason| WeightsError::Config { path: folder.join("config.json"), reason };
        let config = ModelConfig::parse(&config_json).map_err(refuse)?;
        Ok(Self {
            labels: config.labels().map_err(refuse)?,
            name: config.name.unwrap_or_else(|| folder_name(&folder)),
            version: actual[..VERSION_DIGITS].to_owned(),
            max_position_embeddings: config.max_position_embeddings,
            graph,
            tokenizer,
        })
    }

    /// `_name_or_path` of `config.json`, else the name of the folder.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first twelve hexadecimal digits of the digest.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Name of each logit, `[num_labels]`.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Most tokens in one sequence, special tokens included.
    #[must_use]
    pub fn max_position_embeddings(&self) -> usize {
        self.max_position_embeddings
    }

    /// The bytes of `model.onnx`.
    #[must_use]
    pub fn graph(&self) -> &[u8] {
        &self.graph
    }

    /// The bytes of `tokenizer.json`.
    #[must_use]
    pub fn tokenizer(&self) -> &[u8] {
        &self.tokenizer
    }
}

fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    fs::read(path).map_err(|source| WeightsError::Read { path: path.to_owned(), source })
}

fn folder_name(folder: &Path) -> String {
    folder
        .file_name()
        .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

fn sha256_hex(parts: [&[u8]; 3]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// A folder of three small files that goes with the value.
    struct Folder(PathBuf);

    impl Folder {
        fn with(test: &str, config_json: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("sanderling-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("config.json"), config_json).unwrap();
            fs::write(path.join("tokenizer.json"), "tokenizer").unwrap();
            fs::write(path.join("model.onnx"), "graph").unwrap();
            Self(path)
        }

        fn open(&self, fragment: &str) -> Result<Bundle, WeightsError> {
            Bundle::open(&format!("{}{fragment}", self.0.display()))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const CONFIG: &str =
        r#"{"_name_or_path":"tiny","id2label":{"0":"NO","1":"YES"},"max_position_embeddings":16}"#;

    #[test]
    fn a_folder_is_named_by_its_config_and_versioned_by_its_bytes() {
        let folder = Folder::with("named", CONFIG);
        let bundle = folder.open("").unwrap();
        assert_eq!(bundle.name(), "tiny");
        assert_eq!(bundle.labels(), ["NO", "YES"]);
        assert_eq!(bundle.version().len(), VERSION_DIGITS);
        fs::write(folder.0.join("tokenizer.json"), "tokenizes").unwrap();
        assert_ne!(folder.open("").unwrap().version(), bundle.version());
    }

    #[test]
    fn a_pinned_digest_is_enforced() {
        let folder = Folder::with("pinned", CONFIG);
        let digest = sha256_hex([b"graph", b"tokenizer", CONFIG.as_bytes()]);
        folder.open(&format!("#sha256={digest}")).unwrap();
        fs::write(folder.0.join("model.onnx"), "other").unwrap();
        let message = folder.open(&format!("#sha256={digest}")).unwrap_err().to_string();
        assert!(message.ends_with(&format!("MODEL_URI pins {digest}")), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = Folder::with("missing", CONFIG);
        fs::remove_file(folder.0.join("tokenizer.json")).unwrap();
        let message = folder.open("").unwrap_err().to_string();
        assert_eq!(message, format!("cannot read {}/tokenizer.json", folder.0.display()));
    }
}
