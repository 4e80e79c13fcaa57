use std::sync::Arc;

use engine::Engine;
use weights::Bundle;

use crate::{
    BatchLimits, PipelineError, Task, TokenLimits, Truncation, Usage, impl_pipeline,
    labels::sigmoid, runner::Runner, tokenize::Text,
};

/// Reranking by a cross-encoder: a query and texts in, how well each text answers the query out.
#[derive(Debug, Clone)]
pub struct Reranker {
    runner: Runner,
    label: Arc<str>,
}

/// What a reranker says of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Best first; equal scores in the order of the texts.
    pub scores: Vec<TextScore>,
    /// What they cost; the query counts once a text.
    pub usage: Usage,
}

/// How well one text answers the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextScore {
    /// Which of the pairs.
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
            return Err(PipelineError::Model { model: runner.info().name.to_string(), reason });
        }
        let label = bundle.labels().first().map_or("LABEL_0", String::as_str).into();
        Ok(Self { runner, label })
    }

    /// Ranks `pairs` by how well the second text of each answers its first. `raw_scores` gives
    /// logits, not their sigmoid; `truncation` counts unless it is the function's own.
    ///
    /// # Errors
    ///
    /// [`PipelineError`]; nothing has run when it is `QueueFull`.
    pub async fn rerank(
        &self,
        pairs: Vec<Text>,
        raw_scores: bool,
        truncation: Option<Truncation>,
    ) -> Result<Ranking, PipelineError> {
        let (rows, usage) = self.runner.run(pairs, truncation).await?;
        // One logit each.
        Ok(Ranking { scores: rank(&rows.concat(), raw_scores), usage })
    }

    /// How well the second text of each of `pairs` answers its first, in their order.
    ///
    /// # Errors
    ///
    /// As of [`rerank`](Self::rerank).
    pub async fn score(
        &self,
        pairs: Vec<Text>,
        raw_scores: bool,
        truncation: Option<Truncation>,
    ) -> Result<(Vec<f32>, Usage), PipelineError> {
        let (rows, usage) = self.runner.run(pairs, truncation).await?;
        let scores = rows.concat().into_iter().map(|logit| score(logit, raw_scores));
        Ok((scores.collect(), usage))
    }
}

impl_pipeline!(Reranker, |reranker| Task::Rerank { label: &reranker.label });

/// One logit a text as scores, best first.
fn rank(logits: &[f32], raw_scores: bool) -> Vec<TextScore> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // By logit: sigmoids of large ones are equal.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let ranked = order.into_iter();
    ranked.map(|index| TextScore { index, score: score(logits[index], raw_scores) }).collect()
}

fn score(logit: f32, raw_scores: bool) -> f32 {
    if raw_scores { logit } else { sigmoid(logit) }
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
