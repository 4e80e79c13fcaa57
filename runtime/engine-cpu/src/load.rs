//! From a bundle, or the bytes of a graph, to an engine that is ready to run.

use std::sync::Arc;

use encoder::Description;
use engine::{EngineError, Options, Precision};
use prost::Message;
use weights::{Bundle, Packed, Unpacked, Weights, WeightsError};

use crate::{
    CpuEngine, Path,
    exported::{Encoder, Head},
    graph::{self, Graph},
    model::{Bytes, Model},
    recognize,
    simd::Kernels,
    stack::EncoderStack,
    verify,
};

/// A model as the kernels read it.
#[derive(Debug)]
pub struct PackedModel {
    description: Description,
    /// The same, as JSON, without the tensors.
    json: String,
    weights: Vec<u8>,
    graph: Option<Vec<u8>>,
}

/// Packs the ONNX model in `onnx` for `precision`.
///
/// # Errors
///
/// [`EngineError::Unsupported`] if it is not an encoder that the kernels know, with the reason;
/// [`EngineError::Backend`] if it is not ONNX.
pub fn pack(onnx: &[u8], precision: Precision) -> Result<PackedModel, EngineError> {
    let proto = graph::parse(onnx)?;
    let encoder = recognize::recognize(&proto)
        .map_err(|unknown| EngineError::Unsupported { reason: unknown.to_string() })?;
    verify::verify(&encoder, &proto)?;
    PackedModel::of(&encoder, precision)
}

impl PackedModel {
    fn of(encoder: &Encoder, precision: Precision) -> Result<Self, EngineError> {
        let (description, weights) = crate::pack::pack(encoder, precision);
        let graph = match &encoder.head {
            Head::Graph(proto) => Some(proto.encode_to_vec()),
            Head::HiddenStates | Head::FirstToken(_) => None,
        };
        let json = serde_json::to_string(&description).map_err(unreadable)?;
        Ok(Self { description, json, weights, graph })
    }

    /// The model, to be kept by a [`Bundle`].
    #[must_use]
    pub fn unpacked(&self) -> Unpacked<'_> {
        Unpacked {
            description: &self.json,
            tensors: self.description.tensors.clone(),
            weights: &self.weights,
            graph: self.graph.as_deref(),
        }
    }
}

/// A description that is none.
fn unreadable(error: serde_json::Error) -> EngineError {
    EngineError::Unsupported { reason: error.to_string() }
}

/// The graph of an export.
fn graph(bundle: &Bundle) -> Result<Option<Weights>, EngineError> {
    bundle.graph().map_err(|source| EngineError::Backend { engine: "cpu", source: source.into() })
}

impl CpuEngine {
    /// Loads the model of `bundle`. An exported one is packed for the kernels the first time, and
    /// mapped from the bundle's cache from then on; if they do not know it, tract runs it.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] if neither can run the model, or it is packed for another
    /// precision than `options` want; [`EngineError::Backend`] if tract or the system fails.
    pub fn load(bundle: &Bundle, options: &Options) -> Result<Self, EngineError> {
        let _stage = telemetry::stage("engine");
        let options = &options.or_of(bundle.precision(), bundle.sentence().pooling.as_deref())?;
        let precision = options.precision.unwrap_or(Precision::F32);
        let unsupported =
            |error: WeightsError| EngineError::Unsupported { reason: error.to_string() };
        if let Some(packed) = bundle.packed(precision.as_str()).map_err(unsupported)? {
            match (Self::of_packed(packed, options), graph(bundle)?) {
                (Err(error), Some(_)) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        exception = error,
                        "the kept model is damaged; it is packed again"
                    );
                }
                (outcome, _) => return outcome,
            }
        }
        let graph = graph(bundle)?;
        let onnx = graph.as_ref().map(AsRef::as_ref).unwrap_or_default();
        match self::pack(onnx, precision) {
            Ok(model) => match bundle.keep(precision.as_str(), &model.unpacked()) {
                Ok(packed) => Self::of_packed(packed, options),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(
                        exception = error,
                        "the packed model is not kept; the next start packs it again"
                    );
                    Self::of_model(model, options)
                }
            },
            Err(EngineError::Unsupported { reason }) => Self::of_graph(onnx, &reason, options),
            Err(error) => Err(error),
        }
    }

    /// Loads the ONNX model in `onnx`, which is packed in memory.
    ///
    /// The graph takes `input_ids` and may take `attention_mask` and `token_type_ids`, all 64-bit
    /// integers `[batch_size, seq_len]`; its first output is `[batch_size, width]`, or hidden
    /// states `[batch_size, seq_len, hidden_size]`.
    ///
    /// # Errors
    ///
    /// As [`CpuEngine::load`].
    pub fn from_onnx(onnx: &[u8], options: &Options) -> Result<Self, EngineError> {
        match self::pack(onnx, options.precision.unwrap_or(Precision::F32)) {
            Ok(model) => Self::of_model(model, options),
            Err(EngineError::Unsupported { reason }) => Self::of_graph(onnx, &reason, options),
            Err(error) => Err(error),
        }
    }

    /// Whether the kernels run the encoder; else, tract does.
    #[must_use]
    pub fn is_fused(&self) -> bool {
        !matches!(self.path, Path::Graph(_))
    }

    fn of_packed(packed: Packed, options: &Options) -> Result<Self, EngineError> {
        let Packed { description, tensors, weights, graph } = packed;
        let mut description: Description =
            serde_json::from_str(&description).map_err(unreadable)?;
        description.tensors = tensors;
        Self::fused(description, Arc::new(weights), graph.as_deref(), options)
    }

    fn of_model(model: PackedModel, options: &Options) -> Result<Self, EngineError> {
        let PackedModel { description, weights, graph, .. } = model;
        Self::fused(description, Arc::new(weights), graph.as_deref(), options)
    }

    fn fused(
        description: Description,
        weights: Bytes,
        graph: Option<&[u8]>,
        options: &Options,
    ) -> Result<Self, EngineError> {
        let kernels = Kernels::detect();
        let pooling = options.pooling.unwrap_or_default();
        let model = Model::new(description, weights, kernels, pooling)?;
        let stack = EncoderStack::new(model, options.num_threads.max(1))?;
        tracing::info!(
            kernels = kernels.name(),
            head = graph.is_some(),
            "encoder on fused kernels"
        );
        let path = match graph {
            None => Path::Fused(stack),
            Some(onnx) => Path::FusedWithHead(stack, Graph::load(&graph::parse(onnx)?)?),
        };
        Ok(Self { path, num_threads: options.num_threads.max(1), pooling })
    }

    fn of_graph(onnx: &[u8], reason: &str, options: &Options) -> Result<Self, EngineError> {
        tracing::info!(reason, "graph on tract's operators, in f32");
        let graph = Graph::load(&graph::parse(onnx)?)?;
        Ok(Self {
            path: Path::Graph(graph),
            num_threads: options.num_threads.max(1),
            pooling: options.pooling.unwrap_or_default(),
        })
    }
}
