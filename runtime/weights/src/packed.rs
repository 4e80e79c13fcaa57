use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{WeightsError, map::Mapping};

/// Name of the file that says what is in a packed folder.
pub(crate) const MANIFEST: &str = "manifest.json";
const WEIGHTS: &str = "weights.bin";
const GRAPH: &str = "graph.onnx";

/// Counts layouts of the folder; another number is another layout.
const FORMAT: u32 = 1;

/// A model as an engine reads it, without arithmetic.
#[derive(Debug, Clone)]
pub struct Packed {
    /// What the engine says of the weights, in its own JSON.
    pub description: String,
    /// The weights, in the engine's own layout.
    pub weights: Arc<Mapping>,
    /// What the engine leaves to a graph of its own, as ONNX.
    pub graph: Option<Vec<u8>>,
}

/// `manifest.json` of a packed folder.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    pub(crate) name: String,
    /// Of the export that was packed.
    pub(crate) source_sha256: String,
    pub(crate) precision: String,
    pub(crate) labels: Vec<String>,
    pub(crate) max_position_embeddings: usize,
    weights_bytes: u64,
    weights_sha256: String,
    graph: bool,
    encoder: Box<RawValue>,
}

/// What [`Manifest::new`] is told of the model.
pub(crate) struct About<'a> {
    pub(crate) name: &'a str,
    pub(crate) source_sha256: &'a str,
    pub(crate) precision: &'a str,
    pub(crate) labels: &'a [String],
    pub(crate) max_position_embeddings: usize,
}

/// What an engine made of an export.
#[derive(Debug, Clone, Copy)]
pub struct Unpacked<'a> {
    /// What the engine says of the weights: a JSON value.
    pub description: &'a str,
    /// The weights, in the engine's own layout.
    pub weights: &'a [u8],
    /// What the engine leaves to a graph of its own, as ONNX.
    pub graph: Option<&'a [u8]>,
}

impl Manifest {
    pub(crate) fn read(folder: &Path) -> Result<Self, WeightsError> {
        let path = folder.join(MANIFEST);
        let json =
            fs::read(&path).map_err(|source| WeightsError::Read { path: path.clone(), source })?;
        let refuse = |reason: String| WeightsError::Config { path: path.clone(), reason };
        let manifest: Self =
            serde_json::from_slice(&json).map_err(|error| refuse(error.to_string()))?;
        if manifest.format != FORMAT {
            let format = manifest.format;
            return Err(refuse(format!("format {format}; this build reads {FORMAT}")));
        }
        Ok(manifest)
    }

    /// Maps the weights that lie beside the manifest.
    pub(crate) fn open(&self, folder: &Path) -> Result<Packed, WeightsError> {
        let read = |path: PathBuf, source| WeightsError::Read { path, source };
        let path = folder.join(WEIGHTS);
        let weights = Mapping::open(&path).map_err(|source| read(path.clone(), source))?;
        let bytes = weights.as_ref().len() as u64;
        if bytes != self.weights_bytes {
            let reason = format!("{bytes} bytes; the manifest says {}", self.weights_bytes);
            return Err(WeightsError::Config { path, reason });
        }
        let path = folder.join(GRAPH);
        let graph = self.graph.then(|| fs::read(&path)).transpose();
        Ok(Packed {
            description: self.encoder.get().to_owned(),
            weights: Arc::new(weights),
            graph: graph.map_err(|source| read(path, source))?,
        })
    }

    /// Writes `model` and what is known `about` it into `folder`, which is there when all of it is,
    /// or not at all. `others` are further files.
    pub(crate) fn write(
        folder: &Path,
        about: &About<'_>,
        model: Unpacked<'_>,
        others: &[(&str, &[u8])],
    ) -> Result<(), WeightsError> {
        let failed = |source| WeightsError::Write { path: folder.to_owned(), source };
        let encoder = RawValue::from_string(model.description.to_owned());
        let manifest = Self {
            format: FORMAT,
            name: about.name.to_owned(),
            source_sha256: about.source_sha256.to_owned(),
            precision: about.precision.to_owned(),
            labels: about.labels.to_vec(),
            max_position_embeddings: about.max_position_embeddings,
            weights_bytes: model.weights.len() as u64,
            weights_sha256: crate::bundle::sha256_hex([model.weights]),
            graph: model.graph.is_some(),
            encoder: encoder.map_err(|error| failed(error.into()))?,
        };
        let json = serde_json::to_vec_pretty(&manifest).map_err(|error| failed(error.into()))?;
        let mut files = vec![(MANIFEST, json.as_slice()), (WEIGHTS, model.weights)];
        files.extend(model.graph.map(|graph| (GRAPH, graph)));
        files.extend_from_slice(others);
        write_folder(folder, &files).map_err(failed)
    }
}

/// Writes the files beside `folder` and renames them into place. If another process was faster, its
/// folder stays.
fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> io::Result<()> {
    let parent = folder.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = parent.join(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_dir_all(&unfinished);
    let written = fs::create_dir(&unfinished)
        .and_then(|()| {
            files.iter().try_for_each(|(name, bytes)| fs::write(unfinished.join(name), bytes))
        })
        .and_then(|()| fs::rename(&unfinished, folder));
    if written.is_err() {
        let _ = fs::remove_dir_all(&unfinished);
    }
    match written {
        Err(_) if folder.join(MANIFEST).exists() => Ok(()),
        outcome => outcome,
    }
}
