//! `POST /rerank` on the CPU, in every dialect. This file only joins parts: `serve::rerank` is what is
//! asked and answered, `pipeline::Reranker` how.

use std::process::ExitCode;

use engine_cpu::CpuEngine;
use pipeline::Reranker;

fn main() -> ExitCode {
    serve::run("rerank", serve::rerank, |bundle, config| {
        let engine = CpuEngine::load(bundle, &config.engine_options)?;
        Ok(Reranker::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
