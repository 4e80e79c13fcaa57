use admission::InputRules;
use pipeline::Text;

use crate::{Config, error::ApiError};

/// Texts of a request, and how the caller calls them, for errors.
#[derive(Debug)]
pub struct Texts {
    field: &'static str,
    /// Whether they are an array.
    are_many: bool,
    texts: Vec<Text>,
}

impl Texts {
    /// The text that `field` is.
    #[must_use]
    pub fn one(field: &'static str, text: impl Into<Text>) -> Self {
        Self { field, are_many: false, texts: vec![text.into()] }
    }

    /// The texts of the array that `field` is.
    #[must_use]
    pub fn many<T: Into<Text>>(field: &'static str, texts: Vec<T>) -> Self {
        Self { field, are_many: true, texts: texts.into_iter().map(Into::into).collect() }
    }

    /// What the caller calls text `index`.
    pub(super) fn name(&self, index: usize) -> String {
        match self.are_many {
            true => format!("{}[{index}]", self.field),
            false => self.field.to_owned(),
        }
    }

    /// Takes the texts out, clean, if they are within the limits; the names stay.
    pub(crate) fn check(&mut self, config: &Config) -> Result<Vec<Text>, ApiError> {
        if self.texts.is_empty() {
            return Err(ApiError::field("empty", self.field, "is empty"));
        }
        let (count, most) = (self.texts.len(), config.max_client_batch_size);
        if count > most {
            let message = format!("has {count} texts, limit is {most}");
            return Err(ApiError::field("too_many", self.field, message).with_limit(most));
        }
        for index in 0..count {
            match &mut self.texts[index] {
                Text::One(text) => InputRules::clean(text),
                Text::Pair(first, second) => {
                    let mut cleaned = first.to_string();
                    InputRules::clean(&mut cleaned);
                    *first = cleaned.into();
                    InputRules::clean(second);
                }
            }
            let parts: [Option<&str>; 2] = match &self.texts[index] {
                Text::One(text) => [Some(text), None],
                Text::Pair(first, second) => [Some(first), Some(second)],
            };
            for part in parts.into_iter().flatten() {
                check_text(part, config, || self.name(index))?;
            }
        }
        Ok(std::mem::take(&mut self.texts))
    }
}

/// Whether a clean `text` has something in it, not too much, and nothing that is denied.
fn check_text(text: &str, config: &Config, name: impl Fn() -> String) -> Result<(), ApiError> {
    if text.is_empty() {
        return Err(ApiError::field("empty", &name(), "is empty"));
    }
    // A character has a byte at least.
    let most = config.max_input_chars;
    if text.len() > most {
        let num_chars = text.chars().count();
        if num_chars > most {
            let message = format!("has {num_chars} characters, limit is {most}");
            return Err(ApiError::field("too_long", &name(), message).with_limit(most));
        }
    }
    if config.input_rules.denies(text) {
        // What it is, is not said again: it would run where the error is shown.
        return Err(ApiError::field("denied", &name(), "holds what INPUT_DENY forbids"));
    }
    Ok(())
}
