//! Graphs, or the rest of one, on tract: one sequence at a time.

use std::{io::Cursor, sync::Arc};

use engine::EngineError;
use tract_onnx::{pb::ModelProto, prelude::*, tract_hir::infer::Factoid};

/// Name of the input of a graph whose encoder has been taken out.
pub(crate) const HIDDEN_STATES: &str = "hidden_states";

/// What one input of the graph is fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feed {
    /// `[1, seq_len]`, as are the next two.
    InputIds,
    /// All ones: nothing is padded.
    AttentionMask,
    TokenTypeIds,
    /// `[1, seq_len, hidden_size]`
    HiddenStates,
}

impl Feed {
    fn of_name(name: &str) -> Option<Self> {
        match name {
            "input_ids" => Some(Self::InputIds),
            "attention_mask" => Some(Self::AttentionMask),
            "token_type_ids" => Some(Self::TokenTypeIds),
            HIDDEN_STATES => Some(Self::HiddenStates),
            _ => None,
        }
    }
}

/// One sequence, as a graph reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sequence<'a> {
    /// `[seq_len]`
    pub(crate) input_ids: &'a [u32],
    /// `[seq_len]`
    pub(crate) token_type_ids: &'a [u32],
    /// `[seq_len, hidden_size]`; empty for a graph that has its own encoder.
    pub(crate) hidden_states: &'a [f32],
}

/// An optimized graph and the meaning of its inputs.
#[derive(Debug)]
pub(crate) struct Graph {
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<Feed>,
}

/// Reads an ONNX file.
///
/// # Errors
///
/// [`EngineError::Backend`] if it is none.
pub(crate) fn parse(onnx: &[u8]) -> Result<ModelProto, EngineError> {
    tract_onnx::onnx().proto_model_for_read(&mut Cursor::new(onnx)).map_err(backend)
}

impl Graph {
    /// Optimizes `proto` for one sequence of any length.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] for an input of unknown meaning; [`EngineError::Backend`] if
    /// tract cannot prepare the graph.
    pub(crate) fn load(proto: &ModelProto) -> Result<Self, EngineError> {
        Self::prepare(proto, None)
    }

    /// The same for sequences of `seq_len` tokens only, which tract can do with more graphs.
    pub(crate) fn load_for(proto: &ModelProto, seq_len: usize) -> Result<Self, EngineError> {
        Self::prepare(proto, Some(seq_len))
    }

    fn prepare(proto: &ModelProto, seq_len: Option<usize>) -> Result<Self, EngineError> {
        // Shapes that an exporter wrote beside its tensors name the batch; ours is one.
        let onnx = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
        let mut model = onnx.model_for_proto_model(proto).map_err(backend)?;
        let inputs = read_inputs(&model)?;
        let seq_len = match seq_len {
            Some(len) => len.to_dim(),
            None => model.symbols.sym("seq_len").to_dim(),
        };
        Ok(Self { plan: optimize(&mut model, &inputs, &seq_len).map_err(backend)?, inputs })
    }

    /// The first output for one sequence, and its shape.
    ///
    /// # Errors
    ///
    /// [`EngineError::Backend`] if tract fails.
    pub(crate) fn run(
        &self,
        sequence: Sequence<'_>,
    ) -> Result<(Vec<f32>, Vec<usize>), EngineError> {
        self.try_run(sequence).map_err(backend)
    }

    fn try_run(&self, sequence: Sequence<'_>) -> TractResult<(Vec<f32>, Vec<usize>)> {
        let seq_len = sequence.input_ids.len();
        let integers = |ids: &[u32]| {
            let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            Tensor::from_shape(&[1, seq_len], &ids)
        };
        let tensors = self.inputs.iter().map(|feed| {
            let tensor = match feed {
                Feed::InputIds => integers(sequence.input_ids),
                Feed::TokenTypeIds => integers(sequence.token_type_ids),
                Feed::AttentionMask => Tensor::from_shape(&[1, seq_len], &vec![1i64; seq_len]),
                Feed::HiddenStates => {
                    let width = sequence.hidden_states.len() / seq_len;
                    Tensor::from_shape(&[1, seq_len, width], sequence.hidden_states)
                }
            };
            Ok(tensor?.into_tvalue())
        });
        let outputs = self.plan.run(tensors.collect::<TractResult<_>>()?)?;
        let output = outputs[0].cast_to::<f32>()?;
        Ok((output.try_as_plain_ram()?.as_slice::<f32>()?.to_vec(), output.shape().to_vec()))
    }
}

fn read_inputs(model: &InferenceModel) -> Result<Vec<Feed>, EngineError> {
    let outlets = model.input_outlets().map_err(backend)?;
    let names = outlets.iter().map(|outlet| model.node(outlet.node).name.as_str());
    let inputs: Vec<Feed> = names
        .map(|name| {
            Feed::of_name(name).ok_or_else(|| EngineError::Unsupported {
                reason: format!(
                    "input \"{name}\"; known are input_ids, attention_mask, token_type_ids"
                ),
            })
        })
        .collect::<Result<_, _>>()?;
    if !inputs.contains(&Feed::InputIds) && !inputs.contains(&Feed::HiddenStates) {
        return Err(EngineError::Unsupported { reason: "no input \"input_ids\"".to_owned() });
    }
    Ok(inputs)
}

/// Fixes the batch at one sequence and optimizes for it.
fn optimize(
    model: &mut InferenceModel,
    inputs: &[Feed],
    seq_len: &TDim,
) -> TractResult<Arc<TypedRunnableModel>> {
    for (index, feed) in inputs.iter().enumerate() {
        let fact = if *feed == Feed::HiddenStates {
            let declared = model.input_fact(index)?.shape.concretize();
            let width = declared.and_then(|shape| shape.last().cloned());
            let width = width.ok_or_else(|| TractError::msg("hidden_states has no width"))?;
            InferenceFact::dt_shape(f32::datum_type(), tvec![1.to_dim(), seq_len.clone(), width])
        } else {
            InferenceFact::dt_shape(i64::datum_type(), tvec![1.to_dim(), seq_len.clone()])
        };
        model.set_input_fact(index, fact)?;
    }
    let first = model.output_outlets()?[0];
    model.select_output_outlets(&[first])?;
    model.clone().into_optimized()?.into_runnable()
}

fn backend(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EngineError {
    EngineError::Backend { engine: "tract", source: source.into() }
}
