//! `POST /predict` on the CPU, in every dialect. This file only joins parts: `serve::predict` is what is
//! asked and answered, `pipeline::Classifier` how.

use std::process::ExitCode;

use engine_cpu::CpuEngine;
use pipeline::Classifier;

fn main() -> ExitCode {
    serve::run("predict", serve::predict, |bundle, config| {
        let engine = CpuEngine::load(bundle, &config.engine_options)?;
        Ok(Classifier::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
