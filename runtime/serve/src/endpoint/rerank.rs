use std::sync::Arc;

use pipeline::{Ranking, Reranker, Text, Truncation, Usage};

use super::{Endpoint, Texts};
use crate::error::ApiError;

impl Endpoint<Reranker> {
    /// `texts` in the order in which they answer `query`, best first.
    ///
    /// # Errors
    ///
    /// Of a text that is over a limit; of the model, and of its queue.
    pub async fn rerank(
        &self,
        query: String,
        mut texts: Texts,
        raw_scores: bool,
        truncation: Option<Truncation>,
    ) -> Result<Ranking, ApiError> {
        let pairs = self.pairs(query, &mut texts)?;
        let ranked = self.pipeline().await?.rerank(pairs, raw_scores, truncation).await;
        ranked.map_err(|error| ApiError::of_pipeline(&error, |index| texts.name(index)))
    }

    /// How well the second text of each of `pairs` answers its first, in their order.
    ///
    /// # Errors
    ///
    /// As of [`rerank`](Self::rerank).
    pub async fn score(
        &self,
        mut pairs: Texts,
        raw_scores: bool,
        truncation: Option<Truncation>,
    ) -> Result<(Vec<f32>, Usage), ApiError> {
        let checked = pairs.check(&self.config)?;
        let scored = self.pipeline().await?.score(checked, raw_scores, truncation).await;
        scored.map_err(|error| ApiError::of_pipeline(&error, |index| pairs.name(index)))
    }

    fn pairs(&self, query: String, texts: &mut Texts) -> Result<Vec<Text>, ApiError> {
        let query: Arc<str> = match Texts::one("query", query).check(&self.config)?.pop() {
            Some(Text::One(query)) => query.into(),
            _ => return Err(ApiError::missing("query")),
        };
        let texts = texts.check(&self.config)?.into_iter().map(|text| match text {
            Text::One(text) => Text::Pair(query.clone(), text),
            pair @ Text::Pair(..) => pair,
        });
        Ok(texts.collect())
    }
}
