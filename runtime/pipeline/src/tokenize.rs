use tokenizers::{
    DecoderWrapper, Model, NormalizerWrapper, PostProcessor, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer as Library, TokenizerImpl, TruncationDirection,
    TruncationParams, TruncationStrategy,
};

use crate::{PipelineError, wordpiece::WordPiece};

/// What happens to a text of too many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Truncation {
    /// The end is cut off.
    Right,
    /// The beginning is cut off.
    Left,
    /// The text is refused.
    Off,
}

/// How long a text may be, and what happens beyond that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLimits {
    /// Most tokens of one text, special tokens included.
    pub max_input_tokens: usize,
    /// What happens to a text of more.
    pub truncation: Truncation,
}

/// A text as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoding {
    /// `[num_tokens]`, special tokens included.
    pub(crate) input_ids: Vec<u32>,
    /// Whether a part of the text was cut off.
    pub(crate) truncated: bool,
}

/// The library's tokenizer around a model.
type Around<M> =
    TokenizerImpl<M, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// What cuts words into pieces.
#[derive(Debug)]
enum Pieces {
    WordPiece(Box<Around<WordPiece>>),
    /// Any other model: the library's own.
    Library(Box<Library>),
}

/// Text to token ids, by the rules of a `tokenizer.json`.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    pieces: Pieces,
    limits: TokenLimits,
}

impl Tokenizer {
    /// Reads `tokenizer.json`; padding and truncation it asks for give way to `limits`.
    pub(crate) fn new(json: &[u8], limits: TokenLimits) -> Result<Self, PipelineError> {
        let pieces = match serde_json::from_slice::<Around<WordPiece>>(json) {
            Ok(mut pieces) => {
                limit(&mut pieces, limits)?;
                Pieces::WordPiece(Box::new(pieces))
            }
            Err(_) => {
                let mut pieces = Library::from_bytes(json).map_err(PipelineError::Tokenizer)?;
                limit(&mut pieces, limits)?;
                Pieces::Library(Box::new(pieces))
            }
        };
        Ok(Self { pieces, limits })
    }

    pub(crate) fn encode(&self, text: &str) -> Result<Encoding, PipelineError> {
        let encoding = match &self.pieces {
            Pieces::WordPiece(pieces) => pieces.encode_fast(text, true),
            Pieces::Library(pieces) => pieces.encode_fast(text, true),
        };
        let encoding = encoding.map_err(PipelineError::Tokenizer)?;
        let num_tokens = encoding.len();
        let max_input_tokens = self.limits.max_input_tokens;
        if num_tokens > max_input_tokens {
            return Err(PipelineError::TooManyTokens { num_tokens, max_input_tokens });
        }
        let truncated = !encoding.get_overflowing().is_empty();
        Ok(Encoding { input_ids: encoding.get_ids().to_vec(), truncated })
    }
}

/// Makes `pieces` cut and pad as `limits` say.
fn limit<M: Model>(pieces: &mut Around<M>, limits: TokenLimits) -> Result<(), PipelineError> {
    let num_special = pieces.get_post_processor().map_or(0, |added| added.added_tokens(false));
    if limits.max_input_tokens <= num_special {
        let max_input_tokens = limits.max_input_tokens;
        return Err(PipelineError::NoRoom { max_input_tokens, num_special });
    }
    let direction = match limits.truncation {
        Truncation::Right => Some(TruncationDirection::Right),
        Truncation::Left => Some(TruncationDirection::Left),
        Truncation::Off => None,
    };
    let truncation = direction.map(|direction| TruncationParams {
        direction,
        max_length: limits.max_input_tokens,
        strategy: TruncationStrategy::LongestFirst,
        stride: 0,
    });
    pieces.with_padding(None).with_truncation(truncation).map_err(PipelineError::Tokenizer)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One id a word, between [CLS] (1) and [SEP] (2). It asks for a truncation and a padding that
    /// must give way.
    const JSON: &str = r#"{
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[UNK]"},
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
        "decoder": null,
        "model": {"type": "WordLevel", "unk_token": "[UNK]",
            "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "b": 4, "c": 5, "d": 6}}
    }"#;

    fn tokenizer(max_input_tokens: usize, truncation: Truncation) -> Tokenizer {
        Tokenizer::new(JSON.as_bytes(), TokenLimits { max_input_tokens, truncation }).unwrap()
    }

    #[test]
    fn long_texts_are_cut_on_the_side_asked_for_and_say_so() {
        let cases = [
            ("fits", 6, Truncation::Right, &[1, 3, 4, 5, 6, 2][..], false),
            ("right", 5, Truncation::Right, &[1, 3, 4, 5, 2], true),
            ("left", 5, Truncation::Left, &[1, 4, 5, 6, 2], true),
            ("one word", 3, Truncation::Right, &[1, 3, 2], true),
            ("off", 6, Truncation::Off, &[1, 3, 4, 5, 6, 2], false),
        ];
        for (name, max_input_tokens, truncation, input_ids, truncated) in cases {
            let encoding = tokenizer(max_input_tokens, truncation).encode("a b c d").unwrap();
            assert_eq!(encoding, Encoding { input_ids: input_ids.to_vec(), truncated }, "{name}");
        }
    }

    #[test]
    fn long_texts_are_refused_when_truncation_is_off() {
        let error = tokenizer(5, Truncation::Off).encode("a b c d").unwrap_err();
        assert_eq!(error.to_string(), "text has 6 tokens, limit is 5");
    }

    #[test]
    fn a_limit_that_leaves_no_room_is_refused() {
        let limits = TokenLimits { max_input_tokens: 2, truncation: Truncation::Right };
        let error = Tokenizer::new(JSON.as_bytes(), limits).unwrap_err();
        assert_eq!(error.to_string(), "limit is 2 tokens, 2 of them special");
    }
}
