//! `functions/predict-gpu` on the emulator, which is lost after `NUM_PASSES` forward passes.

use std::process::ExitCode;

use emulator::Emulated;
use engine_gpu::GpuEngine;
use pipeline::Classifier;

fn main() -> ExitCode {
    serve::run("predict", serve::predict, |bundle, config| {
        #[expect(clippy::disallowed_methods, reason = "no setting: what a test chooses")]
        let num_passes = std::env::var("NUM_PASSES")?.parse()?;
        let device = Emulated::lost_after(num_passes);
        let engine = GpuEngine::load_on(device, bundle, &config.engine_options)?;
        Ok(Classifier::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
