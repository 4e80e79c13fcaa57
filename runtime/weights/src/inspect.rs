use encoder::Tensor;

use crate::{
    Access, OnProgress, WeightsError, arrive,
    bundle::{CONFIG, Export},
    config::ModelConfig,
    download,
    manifest::{MANIFEST, MAX_FILE_BYTES, WEIGHTS},
    progress::Meter,
    stored::{Source, StoredBundle},
};

/// What a model says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its version, in hexadecimal. `None` for an export that lies elsewhere and was not read.
    pub sha256: Option<String>,
    /// What it is packed for, or should run in.
    pub precision: Option<String>,
    /// Name of each logit.
    pub labels: Vec<String>,
    /// Most tokens in one sequence, special tokens included.
    pub max_position_embeddings: usize,
    /// The version of the export that a bundle was made of; `None` for an export.
    pub source_sha256: Option<String>,
    /// Its files.
    pub files: Vec<ModelFile>,
    /// Of a bundle, in the order in which they lie; none for an export.
    pub tensors: Vec<Tensor>,
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its digest, in hexadecimal, if the manifest has one for all of it.
    pub sha256: Option<String>,
}

/// Says what is at `uri`, without opening it. With `verify`, every digest is checked: of a model
/// that lies elsewhere, by reading it. An export names no digests; its own is that of its files.
///
/// Not for async code: it waits.
///
/// # Errors
///
/// [`WeightsError`]; [`WeightsError::Damaged`] names the first part that has another digest.
pub fn inspect(
    uri: &str,
    verify: bool,
    access: &Access,
    on_progress: OnProgress<'_>,
) -> Result<Contents, WeightsError> {
    let source = Source::open(uri, access)?;
    let Some(bundle) = StoredBundle::find(&source)? else {
        return export(&source, verify, on_progress);
    };
    let contents = contents(&bundle)?;
    if verify {
        let meter = Meter::new("checking", bundle.manifest.weights_bytes, on_progress);
        bundle.verify(source.folder.as_deref(), &meter)?;
    }
    Ok(contents)
}

fn contents(bundle: &StoredBundle) -> Result<Contents, WeightsError> {
    let mut files = Vec::from([ModelFile {
        name: MANIFEST.to_owned(),
        bytes: bundle.json.len() as u64,
        sha256: Some(bundle.sha256.clone()),
    }]);
    for (name, sha256) in bundle.small_files()? {
        let bytes = bundle.len(name)?;
        files.push(ModelFile { name: name.to_owned(), bytes, sha256: Some(sha256.to_owned()) });
    }
    let bytes = bundle.len(WEIGHTS)?;
    files.push(ModelFile { name: WEIGHTS.to_owned(), bytes, sha256: None });
    let manifest = &bundle.manifest;
    Ok(Contents {
        name: Some(manifest.name.clone()),
        sha256: Some(bundle.sha256.clone()),
        precision: Some(manifest.precision.clone()),
        labels: manifest.labels.clone(),
        max_position_embeddings: manifest.max_position_embeddings,
        source_sha256: Some(manifest.source_sha256.clone()),
        files,
        tensors: manifest.tensors.clone(),
    })
}

fn export(
    source: &Source,
    verify: bool,
    on_progress: OnProgress<'_>,
) -> Result<Contents, WeightsError> {
    let Source { store, folder, .. } = source;
    let export = download::block_on(Export::find(&**store))??;
    let (json, _) = download::block_on(download::read(&**store, CONFIG, MAX_FILE_BYTES))??;
    let refuse = |reason| WeightsError::Config { address: store.address(CONFIG), reason };
    let config = ModelConfig::parse(&json).map_err(refuse)?;
    let sha256 = match folder {
        Some(folder) => Some(export.sha256(folder)?),
        None if verify => {
            let meter = Meter::new("reading", export.len(), on_progress);
            Some(export.read(store, |_, bytes| arrive::Place::in_memory(bytes), &meter)?)
        }
        None => None,
    };
    if let Some(sha256) = &sha256 {
        source.check_pinned(sha256)?;
    }
    let files = export.files.iter().map(|(name, stat)| ModelFile {
        name: (*name).to_owned(),
        bytes: stat.len,
        sha256: None,
    });
    Ok(Contents {
        labels: config.labels().map_err(refuse)?,
        name: config.name,
        sha256,
        precision: config.precision,
        max_position_embeddings: config.max_position_embeddings,
        source_sha256: None,
        files: files.collect(),
        tensors: Vec::new(),
    })
}
