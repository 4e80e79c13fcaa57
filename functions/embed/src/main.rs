//! `POST /embed` on the CPU. This file only joins parts; the handler is
//! `serve::endpoint::embed`.

use std::process::ExitCode;

use engine_cpu::{CpuEngine, Options};
use pipeline::Embedder;
use serve::endpoint::embed;

fn main() -> ExitCode {
    serve::run("embed", embed::routes, |bundle, config| {
        let options = Options {
            num_threads: config.num_threads,
            precision: config.precision,
            pooling: config.pooling,
        };
        let engine = CpuEngine::load(bundle, &options)?;
        Ok(Embedder::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
