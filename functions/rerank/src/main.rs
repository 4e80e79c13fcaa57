//! `POST /rerank` on the CPU. This file only joins parts; the handler is
//! `serve::endpoint::rerank`.

use std::process::ExitCode;

use engine_cpu::{CpuEngine, Options};
use pipeline::Reranker;
use serve::endpoint::rerank;

fn main() -> ExitCode {
    serve::run("rerank", rerank::routes, |bundle, config| {
        let options = Options {
            num_threads: config.num_threads,
            precision: config.precision,
            pooling: config.pooling,
        };
        let engine = CpuEngine::load(bundle, &options)?;
        Ok(Reranker::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
