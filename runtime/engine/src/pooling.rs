use std::{fmt, str::FromStr};

/// How the hidden states of a sequence become one row, special tokens included.
///
/// # Source
///
/// Reimers & Gurevych 2019, *Sentence-BERT*, §3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
    /// The largest of each column.
    Max,
}

impl Pooling {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Mean, Self::Cls, Self::Last, Self::Max];

    /// As settings and files spell it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
            Self::Max => "max",
        }
    }
}

impl fmt::Display for Pooling {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A word that names no [`Pooling`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected mean, cls, last or max")]
pub struct UnknownPooling;

impl FromStr for Pooling {
    type Err = UnknownPooling;

    fn from_str(word: &str) -> Result<Self, UnknownPooling> {
        Self::ALL.into_iter().find(|pooling| pooling.as_str() == word).ok_or(UnknownPooling)
    }
}
