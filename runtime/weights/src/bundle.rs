use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use crate::{
    WeightsError,
    config::ModelConfig,
    packed::{About, MANIFEST, Manifest, Packed, Unpacked},
    uri,
};

/// Hexadecimal digits of the digest that name a version.
const VERSION_DIGITS: usize = 12;

/// One version of one model, as it was exported (`model.onnx`, `tokenizer.json`, `config.json`) or
/// packed for an engine (`manifest.json`, `weights.bin`, `tokenizer.json`).
#[derive(Debug)]
pub struct Bundle {
    name: String,
    /// Sixty-four hexadecimal digits.
    sha256: String,
    labels: Vec<String>,
    max_position_embeddings: usize,
    precision: Option<String>,
    tokenizer: Vec<u8>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// The bytes of `model.onnx`, and where what is made of it is kept.
    Exported {
        graph: Vec<u8>,
        cache: PathBuf,
    },
    Packed(Packed),
}

impl Bundle {
    /// Reads the model at `model_uri`: a path or `file:///path`; with `#sha256=…` behind it, only
    /// if that is the digest of `model.onnx`, `tokenizer.json` and `config.json`, one after the
    /// other, or of `manifest.json` and `tokenizer.json` of a packed model. What is made of an
    /// exported model is kept in `cache_dir`.
    ///
    /// # Errors
    ///
    /// [`WeightsError`], naming the file or the part of the address that is wrong.
    pub fn open(model_uri: &str, cache_dir: &Path) -> Result<Self, WeightsError> {
        let uri::ModelUri { folder, sha256 } = uri::parse(model_uri)?;
        let bundle = if folder.join(MANIFEST).exists() {
            Self::open_packed(&folder)?
        } else {
            Self::open_exported(&folder, cache_dir)?
        };
        match sha256.filter(|expected| *expected != bundle.sha256) {
            Some(expected) => Err(WeightsError::Digest { expected, actual: bundle.sha256 }),
            None => Ok(bundle),
        }
    }

    fn open_exported(folder: &Path, cache_dir: &Path) -> Result<Self, WeightsError> {
        let config_json = read(&folder.join("config.json"))?;
        let tokenizer = read(&folder.join("tokenizer.json"))?;
        let graph = read(&folder.join("model.onnx"))?;
        let refuse = |reason| WeightsError::Config { path: folder.join("config.json"), reason };
        let config = ModelConfig::parse(&config_json).map_err(refuse)?;
        Ok(Self {
            labels: config.labels().map_err(refuse)?,
            name: config.name.unwrap_or_else(|| folder_name(folder)),
            sha256: sha256_hex([&graph, &tokenizer, &config_json]),
            max_position_embeddings: config.max_position_embeddings,
            precision: config.precision,
            tokenizer,
            content: Content::Exported { graph, cache: cache_dir.to_owned() },
        })
    }

    fn open_packed(folder: &Path) -> Result<Self, WeightsError> {
        let tokenizer = read(&folder.join("tokenizer.json"))?;
        let manifest = Manifest::read(folder)?;
        Ok(Self {
            content: Content::Packed(manifest.open(folder)?),
            sha256: sha256_hex([&read(&folder.join(MANIFEST))?, &tokenizer]),
            name: manifest.name,
            labels: manifest.labels,
            max_position_embeddings: manifest.max_position_embeddings,
            precision: Some(manifest.precision),
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
        &self.sha256[..VERSION_DIGITS]
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

    /// The bytes of `tokenizer.json`.
    #[must_use]
    pub fn tokenizer(&self) -> &[u8] {
        &self.tokenizer
    }

    /// The precision the model is packed for, or `precision` of `config.json`: what it should run
    /// in if nobody says otherwise.
    #[must_use]
    pub fn precision(&self) -> Option<&str> {
        self.precision.as_deref()
    }

    /// The bytes of `model.onnx`, unless the model is packed.
    #[must_use]
    pub fn graph(&self) -> Option<&[u8]> {
        match &self.content {
            Content::Exported { graph, .. } => Some(graph),
            Content::Packed(_) => None,
        }
    }

    /// The model as it is packed for `precision`, or as it was [kept](Bundle::keep); `None` if it
    /// was not yet.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Precision`] if it is packed for another.
    pub fn packed(&self, precision: &str) -> Result<Option<Packed>, WeightsError> {
        match &self.content {
            Content::Packed(packed) if self.precision() == Some(precision) => {
                Ok(Some(packed.clone()))
            }
            Content::Packed(_) => Err(WeightsError::Precision {
                packed: self.precision().unwrap_or_default().to_owned(),
                wanted: precision.to_owned(),
            }),
            Content::Exported { cache, .. } => {
                let folder = self.kept(cache, precision);
                if !is_ours(&folder) {
                    return Ok(None);
                }
                let usable = Manifest::read(&folder).and_then(|manifest| manifest.open(&folder));
                Ok(usable.ok())
            }
        }
    }

    /// Keeps `model`, which was made of this export for `precision`, and maps it.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`] if the cache does not take it.
    ///
    /// # Panics
    ///
    /// If this bundle is packed itself.
    pub fn keep(&self, precision: &str, model: Unpacked<'_>) -> Result<Packed, WeightsError> {
        let Content::Exported { cache, .. } = &self.content else {
            unreachable!("only an export is packed");
        };
        let folder = self.kept(cache, precision);
        if folder.exists() {
            // It is there and was not usable.
            let _ = fs::remove_dir_all(&folder);
        }
        Manifest::write(&folder, &self.about(precision), model, &[])?;
        Manifest::read(&folder)?.open(&folder)
    }

    /// Writes `model`, which was made of this export for `precision`, with its tokenizer as a
    /// bundle of its own into `folder`.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`], among others if the folder is there already.
    pub fn write(
        &self,
        folder: &Path,
        precision: &str,
        model: Unpacked<'_>,
    ) -> Result<(), WeightsError> {
        if folder.exists() {
            let source = std::io::ErrorKind::AlreadyExists.into();
            return Err(WeightsError::Write { path: folder.to_owned(), source });
        }
        let tokenizer = ("tokenizer.json", self.tokenizer.as_slice());
        Manifest::write(folder, &self.about(precision), model, &[tokenizer])
    }

    fn about<'a>(&'a self, precision: &'a str) -> About<'a> {
        About {
            name: &self.name,
            source_sha256: &self.sha256,
            precision,
            labels: &self.labels,
            max_position_embeddings: self.max_position_embeddings,
        }
    }

    fn kept(&self, cache: &Path, precision: &str) -> PathBuf {
        cache.join(format!("{}-{precision}-{}", self.sha256, env!("CARGO_PKG_VERSION")))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    fs::read(path).map_err(|source| WeightsError::Read { path: path.to_owned(), source })
}

/// Whether only this user can have written `folder`: a cache may lie where others write too, and
/// weights decide what is answered.
fn is_ours(folder: &Path) -> bool {
    let (Ok(folder), Ok(process)) = (fs::metadata(folder), fs::metadata("/proc/self")) else {
        return false;
    };
    folder.uid() == process.uid() && folder.mode() & 0o002 == 0
}

fn folder_name(folder: &Path) -> String {
    folder
        .file_name()
        .map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

pub(crate) fn sha256_hex<const N: usize>(parts: [&[u8]; N]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

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
            Bundle::open(&format!("{}{fragment}", self.0.display()), &self.0.join("cache"))
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

    const MODEL: Unpacked<'_> =
        Unpacked { description: r#"{"layers":6}"#, weights: &[7; 100], graph: Some(b"head") };

    fn check(packed: &Packed) {
        assert_eq!(packed.description, MODEL.description);
        assert_eq!((*packed.weights).as_ref(), MODEL.weights);
        assert_eq!(packed.graph.as_deref(), MODEL.graph);
    }

    #[test]
    fn what_is_kept_of_an_export_is_mapped_the_next_time() {
        let folder = Folder::with("kept", CONFIG);
        let bundle = folder.open("").unwrap();
        assert!(bundle.packed("int8").unwrap().is_none());
        check(&bundle.keep("int8", MODEL).unwrap());
        check(&folder.open("").unwrap().packed("int8").unwrap().unwrap());
        assert!(bundle.packed("bf16").unwrap().is_none(), "another precision");
        fs::write(folder.0.join("model.onnx"), "other").unwrap();
        assert!(folder.open("").unwrap().packed("int8").unwrap().is_none(), "another model");
    }

    #[test]
    fn what_was_cut_short_is_not_used_and_replaced() {
        let folder = Folder::with("cut", CONFIG);
        let bundle = folder.open("").unwrap();
        bundle.keep("int8", MODEL).unwrap();
        let kept = bundle.kept(&folder.0.join("cache"), "int8");
        for (file, content) in [("weights.bin", "short"), ("manifest.json", "{")] {
            fs::write(kept.join(file), content).unwrap();
            assert!(bundle.packed("int8").unwrap().is_none(), "{file}");
            check(&bundle.keep("int8", MODEL).unwrap());
        }
        let left = fs::read_dir(folder.0.join("cache")).unwrap().count();
        assert_eq!(left, 1, "nothing unfinished stays");
    }

    #[test]
    fn what_others_may_have_written_is_not_used() {
        let folder = Folder::with("others", CONFIG);
        let bundle = folder.open("").unwrap();
        bundle.keep("int8", MODEL).unwrap();
        let kept = bundle.kept(&folder.0.join("cache"), "int8");
        fs::set_permissions(&kept, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(bundle.packed("int8").unwrap().is_none());
        check(&bundle.keep("int8", MODEL).unwrap());
        check(&bundle.packed("int8").unwrap().unwrap());
    }

    #[test]
    fn a_cache_that_takes_nothing_is_an_error_that_names_it() {
        let folder = Folder::with("full", CONFIG);
        fs::write(folder.0.join("cache"), "a file where a folder should be").unwrap();
        let error = folder.open("").unwrap().keep("int8", MODEL).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
    }

    #[test]
    fn a_packed_folder_is_a_bundle() {
        let folder = Folder::with("packed", CONFIG);
        let export = folder.open("").unwrap();
        let path = folder.0.join("int8");
        export.write(&path, "int8", MODEL).unwrap();
        let open = || Bundle::open(path.to_str().unwrap(), Path::new("/nowhere"));
        let bundle = open().unwrap();
        assert_eq!(bundle.name(), "tiny");
        assert_eq!(bundle.labels(), ["NO", "YES"]);
        assert_eq!(bundle.max_position_embeddings(), 16);
        assert_eq!(bundle.tokenizer(), b"tokenizer");
        assert_eq!(bundle.precision(), Some("int8"));
        assert!(bundle.graph().is_none());
        assert_ne!(bundle.version(), export.version());
        check(&bundle.packed("int8").unwrap().unwrap());
        assert_eq!(
            bundle.packed("f32").unwrap_err().to_string(),
            "the model is packed for int8; PRECISION=f32 needs the export it was made of"
        );
        assert!(export.write(&path, "int8", MODEL).is_err(), "nothing is written over");

        fs::write(path.join("weights.bin"), [7; 99]).unwrap();
        let message = open().unwrap_err().to_string();
        assert!(message.ends_with("weights.bin: 99 bytes; the manifest says 100"), "{message}");
        let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
        let newer = manifest.replace(r#""format": 1"#, r#""format": 2"#);
        fs::write(path.join("manifest.json"), newer).unwrap();
        let message = open().unwrap_err().to_string();
        assert!(message.ends_with("format 2; this build reads 1"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let folder = Folder::with("missing", CONFIG);
        fs::remove_file(folder.0.join("tokenizer.json")).unwrap();
        let message = folder.open("").unwrap_err().to_string();
        assert_eq!(message, format!("cannot read {}/tokenizer.json", folder.0.display()));
    }
}
