use std::sync::Arc;

use engine::Engine;
use weights::Bundle;

use crate::{
    BatchLimits, ModelInfo, Pipeline, PipelineError, TokenLimits,
    runner::{self, Runner},
    tokenize::Text,
};

/// Reranking by a cross-encoder: a query and texts in, how well each text answers the query out.
#[derive(Debug, Clone)]
pub struct Reranker {
    runner: Runner,
}

/// What a reranker says of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Best first; equal scores in the order of the texts.
    pub scores: Vec<TextScore>,
    /// Tokens the model read, the query once a text and special tokens included.
    pub num_tokens: usize,
    /// Whether a part of a text or of the query was cut off before.
    pub truncated: bool,
}

/// How well one text answers the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextScore {
    /// Which of the texts.
    pub index: usize,
    /// 0 to 1, or the model's logit.
    pub score: f32,
}

impl Reranker {
    /// Puts `bundle`'s tokenizer around `engine`, and runs it once.
    ///
    /// `token_limits.max_input_tokens` counts only up to what the model allows, query and text
    /// together.
    ///
    /// # Errors
    ///
    /// [`PipelineError::Model`] if the engine does not give one logit a pair;
    /// [`PipelineError::NoRoom`] if the limit leaves no room for a text;
    /// [`PipelineError::Tokenizer`] and [`PipelineError::Engine`] if those fail.
    pub fn start(
        bundle: &Bundle,
        engine: impl Engine,
        batch_limits: BatchLimits,
        token_limits: TokenLimits,
    ) -> Result<Self, PipelineError> {
        let sample = Text::Pair("warm".into(), "up".to_owned());
        let runner = Runner::start(bundle, engine, batch_limits, token_limits, &sample)?;
        let num_logits = runner.width();
        if num_logits != 1 {
            let reason = format!("a reranker gives one logit, the graph gives {num_logits}");
            return Err(PipelineError::Model { model: runner.info().name.clone(), reason });
        }
        Ok(Self { runner })
    }

    /// Ranks `texts` by how well they answer `query`. `raw_scores` gives logits, not their sigmoid.
    ///
    /// # Errors
    ///
    /// [`PipelineError`]; nothing has run when it is `QueueFull`.
    pub async fn rerank(
        &self,
        query: String,
        texts: Vec<String>,
        raw_scores: bool,
    ) -> Result<Ranking, PipelineError> {
        let query: Arc<str> = query.into();
        let pairs = texts.into_iter().map(|text| Text::Pair(query.clone(), text));
        let rows = self.runner.run(pairs.collect()).await?;
        let (num_tokens, truncated) = runner::usage(&rows);
        let logits: Vec<f32> = rows.iter().map(|row| row.values[0]).collect();
        Ok(Ranking { scores: rank(&logits, raw_scores), num_tokens, truncated })
    }
}

impl Pipeline for Reranker {
    fn model(&self) -> &ModelInfo {
        self.runner.info()
    }
}

/// One logit a text as scores, best first.
fn rank(logits: &[f32], raw_scores: bool) -> Vec<TextScore> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // By logit: sigmoids of large ones are equal.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let score = |index: usize| match raw_scores {
        true => logits[index],
        false => sigmoid(logits[index]),
    };
    order.into_iter().map(|index| TextScore { index, score: score(index) }).collect()
}

/// `1 / (1 + exp(-x))`
fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_best_first_whatever_their_scores_are() {
        let order = |logits: &[f32], raw_scores| {
            rank(logits, raw_scores).iter().map(|score| score.index).collect::<Vec<_>>()
        };
        // The sigmoids of 40 and 50 are both 1.
        let logits = [-1.0, 40.0, 50.0, -100.0, 40.0];
        assert_eq!(order(&logits, false), [2, 1, 4, 0, 3]);
        assert_eq!(order(&logits, true), [2, 1, 4, 0, 3]);
        assert_eq!(rank(&[0.0], false)[0].score, 0.5);
        assert_eq!(rank(&[-3.0], true)[0].score, -3.0);
        assert!(rank(&[-100.0, 100.0], false).iter().all(|text| text.score.is_finite()));
    }
}
