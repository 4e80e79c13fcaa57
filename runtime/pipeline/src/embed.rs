use std::{collections::BTreeMap, sync::Arc};

use engine::Engine;
use weights::Bundle;

use crate::{
    BatchLimits, PipelineError, Task, TokenLimits, Truncation, Usage, impl_pipeline,
    runner::Runner, tokenize::Text,
};

/// Sentence embeddings: texts in, a vector each out.
#[derive(Debug, Clone)]
pub struct Embedder {
    runner: Runner,
    prompts: Arc<Prompts>,
    pooling: Option<Arc<str>>,
}

#[derive(Debug)]
struct Prompts {
    texts: BTreeMap<String, String>,
    default: Option<String>,
}

/// How embeddings are made of texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbedOptions {
    /// Whether each vector is scaled to length 1.
    pub normalize: bool,
    /// Numbers that are kept, from the first; `None`: all. For models trained so that the first ones
    /// say most.
    pub dimensions: Option<usize>,
    /// Which of the model's prompts is put before the texts; `None`: its default, if it has one.
    pub prompt_name: Option<String>,
    /// What happens to a text that is too long, unless it is the function's own.
    pub truncation: Option<Truncation>,
}

impl Default for EmbedOptions {
    /// All of a vector, of length 1, with the model's default prompt.
    fn default() -> Self {
        Self { normalize: true, dimensions: None, prompt_name: None, truncation: None }
    }
}

/// What an embedder makes of texts.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    /// `[batch_size][dimensions]`
    pub rows: Vec<Vec<f32>>,
    /// What they cost.
    pub usage: Usage,
}

impl Embedder {
    /// Puts `bundle`'s tokenizer and prompts around `engine`, and runs it once.
    ///
    /// `token_limits.max_input_tokens` counts only up to what the model allows.
    ///
    /// # Errors
    ///
    /// [`PipelineError::NoRoom`] if the limit leaves no room for a text;
    /// [`PipelineError::Tokenizer`] and [`PipelineError::Engine`] if those fail.
    pub fn start(
        bundle: &Bundle,
        engine: impl Engine,
        batch_limits: BatchLimits,
        token_limits: TokenLimits,
    ) -> Result<Self, PipelineError> {
        let sample = Text::One("warm up".to_owned());
        let runner = Runner::start(bundle, engine, batch_limits, token_limits, &sample)?;
        let sentence = bundle.sentence();
        let default = sentence.default_prompt_name.as_ref();
        let prompts = Prompts {
            default: default.and_then(|name| sentence.prompts.get(name)).cloned(),
            texts: sentence.prompts.clone(),
        };
        let pooling = sentence.pooling.as_deref().map(Into::into);
        Ok(Self { runner, prompts: Arc::new(prompts), pooling })
    }

    /// The embeddings of `texts`, in their order. Of a pair, the prompt stands before the first.
    ///
    /// # Errors
    ///
    /// [`PipelineError`]; nothing has run when it is `QueueFull`, `Dimensions` or `Prompt`.
    pub async fn embed(
        &self,
        texts: Vec<Text>,
        options: EmbedOptions,
    ) -> Result<Embeddings, PipelineError> {
        let hidden_size = self.runner.width();
        let dimensions = options.dimensions.unwrap_or(hidden_size);
        if dimensions > hidden_size {
            return Err(PipelineError::Dimensions { dimensions, hidden_size });
        }
        let prompt = self.prompts.find(options.prompt_name)?;
        let texts = texts.into_iter().map(|text| match text {
            text if prompt.is_empty() => text,
            Text::One(text) => Text::One(format!("{prompt}{text}")),
            Text::Pair(first, second) => Text::Pair(format!("{prompt}{first}").into(), second),
        });
        let (mut rows, usage) = self.runner.run(texts.collect(), options.truncation).await?;
        for row in &mut rows {
            row.truncate(dimensions);
            if options.normalize {
                normalize(row);
            }
        }
        Ok(Embeddings { rows, usage })
    }
}

impl_pipeline!(Embedder, |embedder| Task::Embed {
    hidden_size: embedder.runner.width(),
    prompt_names: embedder.prompts.texts.keys().map(String::as_str).collect(),
    pooling: embedder.pooling.as_deref(),
});

impl Prompts {
    fn find(&self, name: Option<String>) -> Result<&str, PipelineError> {
        let Some(name) = name else { return Ok(self.default.as_deref().unwrap_or_default()) };
        match self.texts.get(&name) {
            Some(prompt) => Ok(prompt),
            None => {
                let known = self.texts.keys().cloned().collect();
                Err(PipelineError::Prompt { name, known })
            }
        }
    }
}

/// Scales `row` to length 1; zeros stay.
fn normalize(row: &mut [f32]) {
    // In f64, in which no square of a finite f32 overflows.
    let square: f64 = row.iter().map(|value| f64::from(*value).powi(2)).sum();
    if square > 0.0 {
        let scale = 1.0 / square.sqrt();
        row.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_scaled_to_length_one() {
        let cases = [
            ([3.0, 4.0], [0.6, 0.8]),
            ([0.0, 0.0], [0.0, 0.0]),
            ([-1e38, 0.0], [-1.0, 0.0]),
            ([0.0, 1e-40], [0.0, 1.0]),
        ];
        for (mut row, expected) in cases {
            normalize(&mut row);
            assert_eq!(row, expected);
        }
    }

    #[test]
    fn prompts_are_found_by_name_or_default() {
        let texts = [("query", "query: "), ("passage", "passage: ")];
        let texts: BTreeMap<String, String> =
            texts.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let prompts = Prompts { texts: texts.clone(), default: Some("query: ".to_owned()) };
        assert_eq!(prompts.find(None).unwrap(), "query: ");
        assert_eq!(prompts.find(Some("passage".to_owned())).unwrap(), "passage: ");
        let error = prompts.find(Some("document".to_owned())).unwrap_err().to_string();
        assert_eq!(error, r#"there is no prompt "document"; known are ["passage", "query"]"#);
        assert_eq!(Prompts { texts, default: None }.find(None).unwrap(), "");
    }
}
