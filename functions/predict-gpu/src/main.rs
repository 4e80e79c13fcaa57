//! `POST /predict` on a GPU, in every dialect: `functions/predict` with another engine.

use std::process::ExitCode;

use engine_gpu::GpuEngine;
use pipeline::Classifier;

fn main() -> ExitCode {
    serve::run("predict", serve::predict, |bundle, config| {
        let engine = GpuEngine::load(bundle, &config.engine_options)?;
        Ok(Classifier::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
