//! `POST /predict` on the CPU. This file only joins parts; the handler is
//! `serve::endpoint::predict`.

use std::process::ExitCode;

use engine_cpu::{CpuEngine, Options};
use pipeline::Classifier;
use serve::endpoint::predict;

fn main() -> ExitCode {
    serve::run("predict", predict::routes, |bundle, config| {
        let options = Options {
            num_threads: config.num_threads,
            precision: config.precision,
            pooling: config.pooling,
        };
        let engine = CpuEngine::load(bundle, &options)?;
        Ok(Classifier::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
