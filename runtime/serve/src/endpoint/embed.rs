use pipeline::{EmbedOptions, Embedder, Embeddings, Text, Truncation, Usage};

use super::{Endpoint, Texts};
use crate::error::ApiError;

impl Endpoint<Embedder> {
    /// A vector for each text.
    ///
    /// # Errors
    ///
    /// Of a text or an option that is over a limit; of the model, and of its queue.
    pub async fn embed(
        &self,
        mut texts: Texts,
        options: EmbedOptions,
    ) -> Result<Embeddings, ApiError> {
        let checked = texts.check(&self.config)?;
        self.embed_checked(checked, options, |index| texts.name(index)).await
    }

    /// How close each of `sentences` is to `source`, from -1 to 1: the cosine of their angle.
    ///
    /// # Errors
    ///
    /// As of [`embed`](Self::embed).
    pub async fn similarity(
        &self,
        mut source: Texts,
        mut sentences: Texts,
        prompt_name: Option<String>,
        truncation: Option<Truncation>,
    ) -> Result<(Vec<f32>, Usage), ApiError> {
        let mut checked = source.check(&self.config)?;
        checked.extend(sentences.check(&self.config)?);
        let options = EmbedOptions { prompt_name, truncation, ..EmbedOptions::default() };
        let name = |index: usize| match index.checked_sub(1) {
            None => source.name(0),
            Some(index) => sentences.name(index),
        };
        let embedded = self.embed_checked(checked, options, name).await?;
        let (source, sentences) = embedded.rows.split_at(1);
        Ok((sentences.iter().map(|sentence| dot(&source[0], sentence)).collect(), embedded.usage))
    }

    async fn embed_checked(
        &self,
        texts: Vec<Text>,
        options: EmbedOptions,
        name: impl Fn(usize) -> String,
    ) -> Result<Embeddings, ApiError> {
        if options.dimensions == Some(0) {
            return Err(ApiError::field("out_of_range", "dimensions", "0 is below 1").with_limit(1));
        }
        let embedded = self.pipeline().await?.embed(texts, options).await;
        embedded.map_err(|error| ApiError::of_pipeline(&error, name))
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
