//! `POST /predict` on the CPU. This file only joins parts; the handler is
//! `serve::endpoint::predict`.

use std::process::ExitCode;

use engine_cpu::{CpuEngine, Options};
use pipeline::Classifier;
use serve::endpoint::predict;
use weights::Bundle;

fn main() -> ExitCode {
    serve::run("predict", predict::routes, |config| {
        let bundle = Bundle::open(&config.model_uri, &config.cache_dir)?;
        let options = Options {
            num_threads: config.num_threads,
            precision: config.precision,
            ..Options::default()
        };
        let engine = CpuEngine::load(&bundle, &options)?;
        Ok(Classifier::start(&bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
