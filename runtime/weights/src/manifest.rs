use std::{collections::BTreeMap, fs, path::Path};

use encoder::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Sentence, WeightsError, digest, map::Weights};

/// Name of the file that says what is in a bundle.
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const WEIGHTS: &str = "weights.bin";
pub(crate) const GRAPH: &str = "graph.onnx";

/// Longest manifest, tokenizer and graph that are read, in bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 16 << 20;
pub(crate) const MAX_FILE_BYTES: u64 = 256 << 20;

/// Counts layouts of the bundle; another number is another layout.
const FORMAT: u32 = 1;

/// What an engine made of an export.
#[derive(Debug, Clone)]
pub struct Unpacked<'a> {
    /// What the engine says of the model: a JSON value.
    pub description: &'a str,
    /// The tensors, in the order in which they lie and are needed.
    pub tensors: Vec<Tensor>,
    /// The weights, in the engine's own layout.
    pub weights: &'a [u8],
    /// What the engine leaves to a graph of its own, as ONNX.
    pub graph: Option<&'a [u8]>,
}

/// A model as an engine reads it, without arithmetic.
#[derive(Debug, Clone)]
pub struct Packed {
    /// What the engine says of the model, in its own JSON.
    pub description: String,
    /// The tensors, in the order in which they lie and arrive.
    pub tensors: Vec<Tensor>,
    /// The weights, in the engine's own layout.
    pub weights: Weights,
    /// What the engine leaves to a graph of its own, as ONNX.
    pub graph: Option<Vec<u8>>,
}

/// `manifest.json`: what is in a bundle, each part with its digest. Its own digest is the version
/// of the bundle.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format: u32,
    pub(crate) name: String,
    /// Of the export that was packed.
    pub(crate) source_sha256: String,
    pub(crate) precision: String,
    pub(crate) labels: Vec<String>,
    pub(crate) max_position_embeddings: usize,
    #[serde(default, skip_serializing_if = "Sentence::is_empty")]
    pub(crate) sentence: Sentence,
    /// Size of `weights.bin`, in bytes.
    pub(crate) weights_bytes: u64,
    /// Digests of the files beside it.
    pub(crate) files: BTreeMap<String, String>,
    pub(crate) encoder: Box<RawValue>,
    pub(crate) tensors: Vec<Tensor>,
}

impl Manifest {
    /// Reads the manifest at `address`.
    pub(crate) fn parse(json: &[u8], address: &str) -> Result<Self, WeightsError> {
        let refuse = |reason: String| WeightsError::Config { address: address.to_owned(), reason };
        let manifest: Self =
            serde_json::from_slice(json).map_err(|error| refuse(error.to_string()))?;
        if manifest.format != FORMAT {
            let format = manifest.format;
            return Err(refuse(format!("format {format}; this build reads {FORMAT}")));
        }
        let mut end = 0;
        for Tensor { name, offset, length, .. } in &manifest.tensors {
            let next = offset.checked_add(*length);
            let Some(next) =
                next.filter(|next| *offset >= end && *next as u64 <= manifest.weights_bytes)
            else {
                return Err(refuse(format!("tensor {name} lies outside of its place")));
            };
            end = next;
        }
        Ok(manifest)
    }

    /// Digest of the file `name`, which belongs to every bundle.
    pub(crate) fn digest(&self, name: &str) -> Result<&str, WeightsError> {
        let digest = self.files.get(name).map(String::as_str);
        digest.ok_or_else(|| WeightsError::Missing { address: format!("{name} in {MANIFEST}") })
    }

    /// A manifest for `model`, with the digests of its parts and of `tokenizer`.
    pub(crate) fn new(
        about: About<'_>,
        model: &Unpacked<'_>,
        tokenizer: &[u8],
    ) -> Result<Self, serde_json::Error> {
        let mut files = BTreeMap::from([(TOKENIZER.to_owned(), digest::sha256([tokenizer]))]);
        files.extend(model.graph.map(|graph| (GRAPH.to_owned(), digest::sha256([graph]))));
        let mut tensors = model.tensors.clone();
        for tensor in &mut tensors {
            let bytes = &model.weights[tensor.offset..tensor.offset + tensor.length];
            tensor.sha256 = digest::sha256([bytes]);
        }
        Ok(Self {
            format: FORMAT,
            name: about.name.to_owned(),
            source_sha256: about.source_sha256.to_owned(),
            precision: about.precision.to_owned(),
            labels: about.labels.to_vec(),
            max_position_embeddings: about.max_position_embeddings,
            sentence: about.sentence.clone(),
            weights_bytes: model.weights.len() as u64,
            files,
            encoder: RawValue::from_string(model.description.to_owned())?,
            tensors,
        })
    }
}

/// What [`Manifest::new`] is told of the model.
pub(crate) struct About<'a> {
    pub(crate) name: &'a str,
    pub(crate) source_sha256: &'a str,
    pub(crate) precision: &'a str,
    pub(crate) labels: &'a [String],
    pub(crate) max_position_embeddings: usize,
    pub(crate) sentence: &'a Sentence,
}

/// Writes the files of a bundle into `folder`, which is there.
pub(crate) fn write(
    folder: &Path,
    about: About<'_>,
    model: &Unpacked<'_>,
    tokenizer: &[u8],
) -> std::io::Result<()> {
    let manifest = Manifest::new(about, model, tokenizer)?;
    let mut json = serde_json::to_vec_pretty(&manifest)?;
    json.push(b'\n');
    fs::write(folder.join(WEIGHTS), model.weights)?;
    fs::write(folder.join(TOKENIZER), tokenizer)?;
    if let Some(graph) = model.graph {
        fs::write(folder.join(GRAPH), graph)?;
    }
    fs::write(folder.join(MANIFEST), json)
}
