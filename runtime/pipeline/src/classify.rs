use engine::Engine;
use weights::Bundle;

use crate::{
    BatchLimits, LabelScore, ModelInfo, Pipeline, PipelineError, TokenLimits, labels::top_labels,
    runner::Runner, tokenize::Text,
};

/// Text classification: a text in, its most probable labels out.
#[derive(Debug, Clone)]
pub struct Classifier {
    runner: Runner,
    labels: std::sync::Arc<[String]>,
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
        engine: impl Engine,
        batch_limits: BatchLimits,
        token_limits: TokenLimits,
    ) -> Result<Self, PipelineError> {
        let sample = Text::One("warm up".to_owned());
        let runner = Runner::start(bundle, engine, batch_limits, token_limits, &sample)?;
        let (num_labels, num_logits) = (bundle.labels().len(), runner.width());
        if num_logits != num_labels {
            let reason = format!("config.json has {num_labels} labels, the graph {num_logits}");
            return Err(PipelineError::Model { model: runner.info().name.clone(), reason });
        }
        Ok(Self { runner, labels: bundle.labels().into() })
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
        let num_labels = self.labels.len();
        if top_k > num_labels {
            return Err(PipelineError::TopK { top_k, num_labels });
        }
        let row = self.runner.run_one(Text::One(text)).await?;
        let labels = top_labels(&row.values, &self.labels, top_k);
        Ok(Classification { labels, num_tokens: row.num_tokens, truncated: row.truncated })
    }
}

impl Pipeline for Classifier {
    fn model(&self) -> &ModelInfo {
        self.runner.info()
    }
}
