//! `POST /embed` on the CPU, in every dialect. This file only joins parts: `serve::embed` is what is
//! asked and answered, `pipeline::Embedder` how.

use std::process::ExitCode;

use engine_cpu::CpuEngine;
use pipeline::Embedder;

fn main() -> ExitCode {
    serve::run("embed", serve::embed, |bundle, config| {
        let engine = CpuEngine::load(bundle, &config.engine_options)?;
        Ok(Embedder::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
