//! Our engine, as a function runs it: the exported graph, packed batches, one of three precisions.

use std::fs;

use engine::{Batch, Engine, Options};
use engine_cpu::CpuEngine;
use sanderling_bench_peers::{Arguments, Failure, Model, serve};

struct Sanderling(CpuEngine);

fn load(arguments: &Arguments) -> Result<Sanderling, Failure> {
    let options = Options {
        num_threads: arguments.num_threads,
        precision: arguments.precision.as_deref().map(str::parse).transpose()?,
        ..Options::default()
    };
    let engine = CpuEngine::from_onnx(&fs::read(&arguments.model)?, &options)?;
    if !engine.is_fused() {
        return Err("the graph is not recognized: tract would run it".into());
    }
    Ok(Sanderling(engine))
}

impl Model for Sanderling {
    type Input = Batch;

    fn prepare(&self, sequences: &[Vec<u32>]) -> Result<Batch, Failure> {
        let mut batch = Batch::new();
        for input_ids in sequences {
            batch.push(input_ids);
        }
        Ok(batch)
    }

    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>, Failure> {
        let output = self.0.forward(batch)?;
        Ok((0..batch.batch_size()).flat_map(|index| output.row(index).to_vec()).collect())
    }
}

fn main() -> Result<(), Failure> {
    serve(load)
}
