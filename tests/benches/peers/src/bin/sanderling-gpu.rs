//! Our engine on the first GPU: the exported graph, as a bundle holds it, and packed batches.

use std::fs;

use engine::{Options, Precision};
use engine_gpu::{Cuda, GpuEngine};
use sanderling_bench_peers::{Arguments, Failure, Ours, serve};

fn load(arguments: &Arguments) -> Result<Ours<GpuEngine<Cuda>>, Failure> {
    let device = Cuda::open(0)?;
    let packed = engine_cpu::pack(&fs::read(&arguments.model)?, Precision::F32)?;
    Ok(Ours(GpuEngine::of_unpacked(device, &packed.unpacked(), &Options::default())?))
}

fn main() -> Result<(), Failure> {
    serve(load)
}
