//! `POST /embed` on a GPU, in every dialect: `functions/embed` with another engine.

use std::process::ExitCode;

use engine_gpu::GpuEngine;
use pipeline::Embedder;

fn main() -> ExitCode {
    serve::run("embed", serve::embed, |bundle, config| {
        let engine = GpuEngine::load(bundle, &config.engine_options)?;
        Ok(Embedder::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
