//! `POST /predict` on the CPU. This file only joins parts; the handler is
//! `serve::endpoint::predict`.

use std::process::ExitCode;

use engine_cpu::CpuEngine;
use pipeline::Classifier;
use serve::endpoint::predict;
use weights::Bundle;

fn main() -> ExitCode {
    serve::run("predict", predict::routes, |config| {
        let bundle = Bundle::open(&config.model_uri)?;
        let engine = CpuEngine::load(bundle.graph(), config.num_threads)?;
        Ok(Classifier::start(&bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
