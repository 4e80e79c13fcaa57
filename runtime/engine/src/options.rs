use std::{fmt::Display, str::FromStr};

use crate::{EngineError, Pooling, Precision};

/// How an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads, the caller's included.
    pub num_threads: usize,
    /// What linear layers are computed in. `None`: what the bundle says, else `f32`.
    pub precision: Option<Precision>,
    /// What becomes of hidden states where a model has no head. `None`: what the bundle says, else
    /// [`Pooling::Mean`].
    pub pooling: Option<Pooling>,
}

impl Options {
    /// With what a bundle says of its model where these say nothing.
    ///
    /// # Errors
    ///
    /// [`EngineError::Unsupported`] if it says what this build does not know.
    pub fn or_of(
        self,
        precision: Option<&str>,
        pooling: Option<&str>,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            precision: self
                .precision
                .map_or_else(|| parse("precision", precision), |own| Ok(Some(own)))?,
            pooling: self.pooling.map_or_else(|| parse("pooling", pooling), |own| Ok(Some(own)))?,
            ..self
        })
    }
}

fn parse<T: FromStr<Err: Display>>(
    name: &str,
    word: Option<&str>,
) -> Result<Option<T>, EngineError> {
    let parse = |word: &str| {
        word.parse().map_err(|unknown| EngineError::Unsupported {
            reason: format!("the model's {name} is \"{word}\": {unknown}"),
        })
    };
    word.map(parse).transpose()
}

impl Default for Options {
    fn default() -> Self {
        Self { num_threads: 1, precision: None, pooling: None }
    }
}
