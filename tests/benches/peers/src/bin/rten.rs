//! rten, with weights packed when loading and a thread pool of its own.

use std::sync::Arc;

use rten::{ModelOptions, NodeId, RunOptions, ThreadPool, Value};
use sanderling_bench_peers::{Arguments, Failure, Model, Padded, serve};

struct Rten {
    model: rten::Model,
    inputs: Vec<(NodeId, String)>,
    options: RunOptions,
}

fn load(arguments: &Arguments) -> Result<Rten, Failure> {
    let model = ModelOptions::with_all_ops().prepack_weights(true).load_file(&arguments.model)?;
    let named = |&id: &NodeId| {
        let name = model.node_info(id).and_then(|node| node.name().map(str::to_owned));
        Ok((id, name.ok_or("an input has no name")?))
    };
    let inputs = model.input_ids().iter().map(named).collect::<Result<_, Failure>>()?;
    let pool = Arc::new(ThreadPool::with_num_threads(arguments.num_threads));
    Ok(Rten { inputs, model, options: RunOptions::default().with_thread_pool(Some(pool)) })
}

impl Model for Rten {
    type Input = Vec<(NodeId, Value)>;

    fn prepare(&self, sequences: &[Vec<u32>]) -> Result<Self::Input, Failure> {
        let batch = Padded::new(sequences);
        let shape = [batch.batch_size, batch.seq_len];
        let tensors = self.inputs.iter().map(|(id, name)| {
            let cells: Vec<i32> = batch.feed(name)?.iter().map(|&cell| cell as i32).collect();
            Ok((*id, Value::from_shape(&shape, cells)?))
        });
        tensors.collect()
    }

    fn forward(&mut self, input: &Self::Input) -> Result<Vec<f32>, Failure> {
        let views = input.iter().map(|(id, value)| (*id, value.as_view().into())).collect();
        let options = Some(self.options.clone());
        let [logits] = self.model.run_n(views, [self.model.output_ids()[0]], options)?;
        Ok(logits.into_tensor::<f32>().ok_or("logits are not f32")?.into_data())
    }
}

fn main() -> Result<(), Failure> {
    serve(load)
}
