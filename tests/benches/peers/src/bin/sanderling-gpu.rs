//! Our engine on the first GPU: the exported graph, as a bundle holds it, and packed batches.

use std::fs;

use engine::{Batch, Engine, Options, Precision};
use engine_gpu::{Cuda, GpuEngine};
use sanderling_bench_peers::{Arguments, Failure, Model, serve};

struct SanderlingGpu(GpuEngine<Cuda>);

fn load(arguments: &Arguments) -> Result<SanderlingGpu, Failure> {
    let device = Cuda::open(0)?;
    let packed = engine_cpu::pack(&fs::read(&arguments.model)?, Precision::F32)?;
    Ok(SanderlingGpu(GpuEngine::of_unpacked(device, &packed.unpacked(), &Options::default())?))
}

impl Model for SanderlingGpu {
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
