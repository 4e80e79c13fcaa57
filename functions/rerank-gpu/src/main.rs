//! `POST /rerank` on a GPU, in every dialect: `functions/rerank` with another engine.

use std::process::ExitCode;

use engine_gpu::GpuEngine;
use pipeline::Reranker;

fn main() -> ExitCode {
    serve::run("rerank", serve::rerank, |bundle, config| {
        let engine = GpuEngine::load(bundle, &config.engine_options)?;
        Ok(Reranker::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
