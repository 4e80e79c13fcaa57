use std::{io::Cursor, sync::Arc};

use engine::EngineError;
use tract_onnx::prelude::*;

use crate::backend;

/// What one input of the graph is fed, each `[1, seq_len]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Feed {
    InputIds,
    /// All ones: nothing is padded.
    AttentionMask,
    /// All zeros: one segment.
    TokenTypeIds,
}

impl Feed {
    fn of_name(name: &str) -> Option<Self> {
        match name {
            "input_ids" => Some(Self::InputIds),
            "attention_mask" => Some(Self::AttentionMask),
            "token_type_ids" => Some(Self::TokenTypeIds),
            _ => None,
        }
    }
}

/// An optimized graph and the meaning of its inputs.
#[derive(Debug)]
pub(crate) struct Graph {
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<Feed>,
}

impl Graph {
    pub(crate) fn load(onnx: &[u8]) -> Result<Self, EngineError> {
        let model = tract_onnx::onnx().model_for_read(&mut Cursor::new(onnx)).map_err(backend)?;
        let inputs = read_inputs(&model)?;
        Ok(Self { plan: prepare(model, inputs.len()).map_err(backend)?, inputs })
    }

    /// The first output for one sequence.
    pub(crate) fn run(&self, input_ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        self.try_run(input_ids).map_err(backend)
    }

    fn try_run(&self, input_ids: &[u32]) -> TractResult<Vec<f32>> {
        let tensors = self.inputs.iter().map(|feed| {
            let row: Vec<i64> = match feed {
                Feed::InputIds => input_ids.iter().map(|&id| i64::from(id)).collect(),
                Feed::AttentionMask => vec![1; input_ids.len()],
                Feed::TokenTypeIds => vec![0; input_ids.len()],
            };
            Ok(Tensor::from_shape(&[1, input_ids.len()], &row)?.into_tvalue())
        });
        let outputs = self.plan.run(tensors.collect::<TractResult<_>>()?)?;
        Ok(outputs[0].try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
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
    if !inputs.contains(&Feed::InputIds) {
        return Err(EngineError::Unsupported { reason: "no input \"input_ids\"".to_owned() });
    }
    Ok(inputs)
}

/// Fixes the batch at one sequence of any length and optimizes for it.
fn prepare(mut model: InferenceModel, num_inputs: usize) -> TractResult<Arc<TypedRunnableModel>> {
    let seq_len = model.symbols.sym("seq_len").to_dim();
    for index in 0..num_inputs {
        let shape = tvec![1.to_dim(), seq_len.clone()];
        model.set_input_fact(index, InferenceFact::dt_shape(i64::datum_type(), shape))?;
    }
    let first = model.output_outlets()?[0];
    model.select_output_outlets(&[first])?;
    model.into_optimized()?.into_runnable()
}
