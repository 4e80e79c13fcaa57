//! Our engine, as a function runs it: the exported graph, packed batches, one of three precisions.

use std::fs;

use engine::Options;
use engine_cpu::CpuEngine;
use sanderling_bench_peers::{Arguments, Failure, Ours, serve};

fn load(arguments: &Arguments) -> Result<Ours<CpuEngine>, Failure> {
    let options = Options {
        num_threads: arguments.num_threads,
        precision: arguments.precision.as_deref().map(str::parse).transpose()?,
        ..Options::default()
    };
    let engine = CpuEngine::from_onnx(&fs::read(&arguments.model)?, &options)?;
    if !engine.is_fused() {
        return Err("the graph is not recognized: tract would run it".into());
    }
    Ok(Ours(engine))
}

fn main() -> Result<(), Failure> {
    serve(load)
}
