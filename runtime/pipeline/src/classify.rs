use std::sync::Arc;

use engine::{Batch, Engine};
use tokio::task::spawn_blocking;
use weights::Bundle;

use crate::{
    BatchLimits, LabelScore, ModelInfo, Pipeline, PipelineError, TokenLimits,
    batch::Batcher,
    labels::top_labels,
    tokenize::{Encoding, Tokenizer},
};

/// Text classification: a text in, its most probable labels out.
#[derive(Debug, Clone)]
pub struct Classifier {
    model: Arc<Model>,
    batcher: Batcher,
}

#[derive(Debug)]
struct Model {
    info: ModelInfo,
    labels: Vec<String>,
    tokenizer: Tokenizer,
}

/// What a classifier says of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Classification {
    /// Best first.
    pub labels: Vec<LabelScore>,
    /// Tokens the model read, special tokens included.
    pub num_tokens: usize,
    /// Whether a part of the text was cut off before.
    pub truncated: bool,
}

impl Classifier {
    /// Puts `bundle`'s tokenizer and labels around `engine`, and runs it once.
    ///
    /// `token_limits.max_input_tokens` counts only up to what the model allows.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Model`] if the engine does not give one logit a label, or the limit leaves
    /// no room for a text; [`PipelineError::Tokenizer`] and [`PipelineError::Engine`] if those
    /// fail.
    pub fn start(
        bundle: &Bundle,
        mut engine: impl Engine,
        batch_limits: BatchLimits,
        token_limits: TokenLimits,
    ) -> Result<Self, PipelineError> {
        let max_input_tokens = token_limits.max_input_tokens.min(bundle.max_position_embeddings());
        let stage = telemetry::stage("tokenizer");
        let tokenizer =
            Tokenizer::new(bundle.tokenizer(), TokenLimits { max_input_tokens, ..token_limits })?;
        drop(stage);
        let info =
            ModelInfo { name: bundle.name().to_owned(), version: bundle.version().to_owned() };
        let labels = bundle.labels().to_vec();
        warm_up(&mut engine, &tokenizer, &info, labels.len())?;
        let model = Model { info, labels, tokenizer };
        let batcher = Batcher::start(engine, batch_limits).map_err(PipelineError::Thread)?;
        Ok(Self { model: Arc::new(model), batcher })
    }

    /// The `top_k` most probable labels of `text`.
    ///
    /// # Errors
    ///
    /// [`PipelineError`]; nothing has run when it is `QueueFull`, `TooManyTokens` or `TopK`.
    pub async fn classify(
        &self,
        text: String,
        top_k: usize,
    ) -> Result<Classification, PipelineError> {
        let num_labels = self.model.labels.len();
        if top_k > num_labels {
            return Err(PipelineError::TopK { top_k, num_labels });
        }
        let place = self.batcher.reserve()?;
        let Encoding { input_ids, truncated } = self.encode(text).await?;
        let num_tokens = input_ids.len();
        let logits = place.forward(input_ids).await?;
        check_finite(&logits, &self.model.info)?;
        let labels = top_labels(&logits, &self.model.labels, top_k);
        Ok(Classification { labels, num_tokens, truncated })
    }

    /// Tokenizes off the threads that serve requests.
    async fn encode(&self, text: String) -> Result<Encoding, PipelineError> {
        let model = self.model.clone();
        let encoding = spawn_blocking(move || model.tokenizer.encode(&text)).await;
        encoding.map_err(|panic| PipelineError::Tokenizer(panic.into()))?
    }
}

impl Pipeline for Classifier {
    fn model(&self) -> &ModelInfo {
        &self.model.info
    }
}

/// One forward pass: what cannot answer is refused before a caller meets it.
fn warm_up(
    engine: &mut impl Engine,
    tokenizer: &Tokenizer,
    info: &ModelInfo,
    num_labels: usize,
) -> Result<(), PipelineError> {
    let _stage = telemetry::stage("warm_up");
    let mut batch = Batch::new();
    batch.push(&tokenizer.encode("warm up")?.input_ids);
    let output = engine.forward(&batch).map_err(|error| PipelineError::Engine(Arc::new(error)))?;
    let logits = output.row(0);
    if logits.len() != num_labels {
        let reason = format!("config.json has {num_labels} labels, the graph {}", logits.len());
        return Err(PipelineError::Model { model: info.name.clone(), reason });
    }
    check_finite(logits, info)
}

fn check_finite(logits: &[f32], info: &ModelInfo) -> Result<(), PipelineError> {
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    Err(PipelineError::NotFinite { model: info.name.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_that_are_not_finite_are_an_error_that_names_the_model() {
        let info = ModelInfo { name: "tiny".to_owned(), version: "0".to_owned() };
        check_finite(&[0.5, -3.0e38], &info).unwrap();
        for logit in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = check_finite(&[0.5, logit], &info).unwrap_err();
            assert_eq!(error.to_string(), "model tiny gave a logit that is not finite");
        }
    }
}
