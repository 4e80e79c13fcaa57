//! Plain tract: its own optimizer, a plan with symbolic shapes, its multithreaded matrix products.

use std::sync::Arc;

use sanderling_bench_peers::{Arguments, Failure, Model, Padded, serve};
use tract_linalg::multithread::{Executor, set_default_executor};
use tract_onnx::prelude::*;

struct Tract {
    plan: Arc<TypedRunnableModel>,
    inputs: Vec<String>,
}

fn load(arguments: &Arguments) -> Result<Tract, Failure> {
    if arguments.num_threads > 1 {
        set_default_executor(Executor::multithread(arguments.num_threads));
    }
    let model = tract_onnx::onnx().model_for_path(&arguments.model)?;
    let inputs = model.input_outlets()?.iter().map(|outlet| model.node(outlet.node).name.clone());
    Ok(Tract { inputs: inputs.collect(), plan: model.into_optimized()?.into_runnable()? })
}

impl Model for Tract {
    type Input = TVec<TValue>;

    fn prepare(&self, sequences: &[Vec<u32>]) -> Result<Self::Input, Failure> {
        let batch = Padded::new(sequences);
        let shape = [batch.batch_size, batch.seq_len];
        let tensors = self
            .inputs
            .iter()
            .map(|name| Ok(Tensor::from_shape(&shape, &batch.feed(name)?)?.into_tvalue()));
        tensors.collect()
    }

    fn forward(&mut self, input: &Self::Input) -> Result<Vec<f32>, Failure> {
        let outputs = self.plan.run(input.clone())?;
        Ok(outputs[0].try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    }
}

fn main() -> Result<(), Failure> {
    serve(load)
}
