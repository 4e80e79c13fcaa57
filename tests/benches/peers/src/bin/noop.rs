//! `POST /predict` with an engine that answers zeros at once: what is left of a request is the edge,
//! the tokenizer and the queue.

use std::process::ExitCode;

use engine::{Batch, Engine, EngineError, Output};
use pipeline::Classifier;

struct Zeros {
    num_labels: usize,
}

impl Engine for Zeros {
    fn forward(&mut self, batch: &Batch) -> Result<Output, EngineError> {
        let batch_size = batch.batch_size();
        Output::new(vec![0.0; batch_size * self.num_labels], batch_size)
    }
}

fn main() -> ExitCode {
    serve::run("predict", serve::predict, |bundle, config| {
        let engine = Zeros { num_labels: bundle.labels().len() };
        Ok(Classifier::start(bundle, engine, config.batch_limits, config.token_limits)?)
    })
}
