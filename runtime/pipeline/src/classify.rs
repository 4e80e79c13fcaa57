use engine::Engine;
use weights::Bundle;

use crate::{
    BatchLimits, LabelScore, PipelineError, Task, TokenLimits, Truncation, Usage, impl_pipeline,
    labels::top_labels, runner::Runner, tokenize::Text,
};

/// Text classification: a text in, its most probable labels out.
#[derive(Debug, Clone)]
pub struct Classifier {
    runner: Runner,
    labels: std::sync::Arc<[String]>,
}

/// What is said of texts, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClassifyOptions {
    /// How many labels a text gets; `None`: all.
    pub top_k: Option<usize>,
    /// How logits become scores; `None`: softmax, or the sigmoid if there is one label only.
    pub scores: Option<Scores>,
    /// What happens to a text that is too long, unless it is the function's own.
    pub truncation: Option<Truncation>,
}

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// They sum to 1: one of the labels holds.
    Softmax,
    /// Each is between 0 and 1 for itself: several labels may hold.
    Sigmoid,
    /// As they are.
    Logits,
}

/// What a classifier says of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifications {
    /// `[batch_size][top_k]`, best first.
    pub rows: Vec<Vec<LabelScore>>,
    /// What they cost.
    pub usage: Usage,
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
            return Err(PipelineError::Model { model: runner.info().name.to_string(), reason });
        }
        Ok(Self { runner, labels: bundle.labels().into() })
    }

    /// The most probable labels of each of `texts`, in their order.
    ///
    /// # Errors
    ///
    /// [`PipelineError`]; nothing has run when it is `QueueFull` or `TopK`.
    pub async fn classify(
        &self,
        texts: Vec<Text>,
        options: ClassifyOptions,
    ) -> Result<Classifications, PipelineError> {
        let num_labels = self.labels.len();
        let top_k = options.top_k.unwrap_or(num_labels);
        if top_k > num_labels {
            return Err(PipelineError::TopK { top_k, num_labels });
        }
        let scores = options.scores.unwrap_or(match num_labels {
            1 => Scores::Sigmoid,
            _ => Scores::Softmax,
        });
        let (rows, usage) = self.runner.run(texts, options.truncation).await?;
        let rows = rows.iter().map(|logits| top_labels(logits, &self.labels, top_k, scores));
        Ok(Classifications { rows: rows.collect(), usage })
    }
}

impl_pipeline!(Classifier, |classifier| Task::Classify { labels: &classifier.labels });
