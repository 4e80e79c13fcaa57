use std::sync::Arc;

use tokenizers::{
    DecoderWrapper, EncodeInput, Model, NormalizerWrapper, PostProcessor, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer as Library, TokenizerImpl, TruncationDirection,
    TruncationParams, TruncationStrategy,
};

use crate::{PipelineError, ascii::Ascii, wordpiece::WordPiece};

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

/// What is tokenized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Text {
    One(String),
    /// Two texts as one sequence, of two segments.
    Pair(Arc<str>, String),
}

impl Text {
    /// Bytes of it.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::One(text) => text.len(),
            Self::Pair(first, second) => first.len() + second.len(),
        }
    }
}

/// Bytes of a text that are tokenized first, for each token that counts. The rest is looked at only
/// if these do not give enough tokens.
const BYTES_PER_TOKEN: usize = 16;

/// A text as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Encoding {
    /// `[num_tokens]`, special tokens included.
    pub(crate) input_ids: Vec<u32>,
    /// `[num_tokens]`, the segment of each.
    pub(crate) token_type_ids: Vec<u32>,
    /// Whether a part of the text was cut off.
    pub(crate) truncated: bool,
}

/// The library's tokenizer around a model.
pub(crate) type Around<M> =
    TokenizerImpl<M, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// What cuts words into pieces.
#[derive(Debug)]
enum Pieces {
    WordPiece(Box<Around<WordPiece>>, Option<Box<Ascii>>),
    /// Any other model: the library's own.
    Library(Box<Library>),
}

/// Text to token ids, by the rules of a `tokenizer.json`.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    pieces: Pieces,
    limits: TokenLimits,
    /// Tokens that are added to every text.
    num_special: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json`; padding and truncation it asks for give way to `limits`.
    pub(crate) fn new(json: &[u8], limits: TokenLimits) -> Result<Self, PipelineError> {
        let (pieces, num_special) = match serde_json::from_slice::<Around<WordPiece>>(json) {
            Ok(mut pieces) => {
                let num_special = limit(&mut pieces, limits)?;
                let ascii = Ascii::new(&pieces).map(Box::new);
                (Pieces::WordPiece(Box::new(pieces), ascii), num_special)
            }
            Err(_) => {
                let mut pieces = Library::from_bytes(json).map_err(PipelineError::Tokenizer)?;
                let num_special = limit(&mut pieces, limits)?;
                (Pieces::Library(Box::new(pieces)), num_special)
            }
        };
        Ok(Self { pieces, limits, num_special })
    }

    /// The ids of `text`. Of a pair that is too long, the longer text is cut first.
    pub(crate) fn encode(&self, text: &Text) -> Result<Encoding, PipelineError> {
        if let Some(encoding) = self.encode_ascii(text) {
            return Ok(encoding);
        }
        let input = match text {
            Text::One(text) => EncodeInput::from(self.enough(text)?),
            Text::Pair(first, second) => (self.enough(first)?, self.enough(second)?).into(),
        };
        let encoding = self.pieces(input, true)?;
        let TokenLimits { max_input_tokens, truncation } = self.limits;
        let extra = encoding.len().saturating_sub(max_input_tokens);
        let kept = match truncation {
            Truncation::Off if extra > 0 => {
                return Err(PipelineError::TooManyTokens { index: 0, max_input_tokens });
            }
            Truncation::Left => extra..encoding.len(),
            Truncation::Right | Truncation::Off => 0..encoding.len() - extra,
        };
        Ok(Encoding {
            input_ids: encoding.get_ids()[kept.clone()].to_vec(),
            token_type_ids: encoding.get_type_ids()[kept].to_vec(),
            truncated: extra > 0 || !encoding.get_overflowing().is_empty(),
        })
    }

    /// [`Self::encode`] for a text that is ASCII and needs no cutting, if the model goes by BERT's
    /// rules.
    pub(crate) fn encode_ascii(&self, text: &Text) -> Option<Encoding> {
        let Pieces::WordPiece(library, Some(ascii)) = &self.pieces else {
            return None;
        };
        let max_input_tokens = self.limits.max_input_tokens;
        // No more than a few tokens are longer; what is longer as a whole is likely to be cut.
        if text.len() > max_input_tokens.saturating_mul(BYTES_PER_TOKEN) {
            return None;
        }
        ascii.encode(library.get_model(), text, max_input_tokens)
    }

    fn pieces(
        &self,
        input: EncodeInput<'_>,
        add_special_tokens: bool,
    ) -> Result<tokenizers::Encoding, PipelineError> {
        let encoding = match &self.pieces {
            Pieces::WordPiece(pieces, _) => pieces.encode_fast(input, add_special_tokens),
            Pieces::Library(pieces) => pieces.encode_fast(input, add_special_tokens),
        };
        encoding.map_err(PipelineError::Tokenizer)
    }

    /// The part of `text`, from the side that stays, that has all tokens that count: what lies
    /// beyond cannot change the answer, since words do not depend on words further on.
    fn enough<'a>(&self, text: &'a str) -> Result<&'a str, PipelineError> {
        let max_input_tokens = self.limits.max_input_tokens;
        let mut len = max_input_tokens.saturating_mul(BYTES_PER_TOKEN);
        while let Some(part) = part(text, len, self.limits.truncation) {
            let encoding = self.pieces(part.into(), false)?;
            if encoding.len() >= max_input_tokens + usize::from(self.num_special == 0) {
                return Ok(part);
            }
            len = part.len().saturating_mul(4);
        }
        Ok(text)
    }
}

/// At least `len` bytes of `text` from the side that stays, up to white space; `None` if that is all
/// of it.
fn part(text: &str, len: usize, truncation: Truncation) -> Option<&str> {
    if text.len() <= len {
        return None;
    }
    match truncation {
        Truncation::Right | Truncation::Off => {
            let rest = &text[text.ceil_char_boundary(len)..];
            let end = text.len() - rest.len() + rest.find(char::is_whitespace)?;
            Some(&text[..end])
        }
        Truncation::Left => {
            let rest = &text[..text.floor_char_boundary(text.len() - len)];
            let start = rest.rfind(char::is_whitespace)?;
            Some(&text[start..])
        }
    }
}

/// Makes `pieces` cut and pad as `limits` say; gives the number of tokens they add to every text.
fn limit<M: Model>(pieces: &mut Around<M>, limits: TokenLimits) -> Result<usize, PipelineError> {
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
        // The library stops at this many tokens of a text, special ones not counted, and does not
        // know whether there are more: one more shows it.
        max_length: limits.max_input_tokens + usize::from(num_special == 0),
        strategy: TruncationStrategy::LongestFirst,
        stride: 0,
    });
    pieces.with_padding(None).with_truncation(truncation).map_err(PipelineError::Tokenizer)?;
    Ok(num_special)
}

#[cfg(test)]
pub(crate) mod tests {
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

    pub(crate) fn tokenizer(max_input_tokens: usize, truncation: Truncation) -> Tokenizer {
        Tokenizer::new(JSON.as_bytes(), TokenLimits { max_input_tokens, truncation }).unwrap()
    }

    fn one(text: &str) -> Text {
        Text::One(text.to_owned())
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
            let encoding = tokenizer(max_input_tokens, truncation).encode(&one("a b c d")).unwrap();
            assert_eq!(encoding.input_ids, input_ids, "{name}");
            assert_eq!(encoding.token_type_ids, vec![0; input_ids.len()], "{name}");
            assert_eq!(encoding.truncated, truncated, "{name}");
        }
    }

    #[test]
    fn pairs_have_two_segments_and_lose_of_the_longer_text_first() {
        let pair = |first: &str, second: &str| Text::Pair(first.into(), second.to_owned());
        let cases = [
            (8, "a b", "c d", &[1, 3, 4, 2, 5, 6, 2][..], &[0, 0, 0, 0, 1, 1, 1][..], false),
            (7, "a", "b c d a", &[1, 3, 2, 4, 5, 6, 2], &[0, 0, 0, 1, 1, 1, 1], true),
            (7, "a b c d", "a", &[1, 3, 4, 5, 2, 3, 2], &[0, 0, 0, 0, 0, 1, 1], true),
            (7, "a b c d", "d c b a", &[1, 3, 4, 2, 6, 5, 2], &[0, 0, 0, 0, 1, 1, 1], true),
        ];
        for (max_input_tokens, first, second, input_ids, token_type_ids, truncated) in cases {
            let tokenizer = tokenizer(max_input_tokens, Truncation::Right);
            let encoding = tokenizer.encode(&pair(first, second)).unwrap();
            assert_eq!(encoding.input_ids, input_ids, "{first}, {second}");
            assert_eq!(encoding.token_type_ids, token_type_ids, "{first}, {second}");
            assert_eq!(encoding.truncated, truncated, "{first}, {second}");
        }
    }

    #[test]
    fn long_texts_are_refused_when_truncation_is_off() {
        let error = tokenizer(5, Truncation::Off).encode(&one("a b c d")).unwrap_err();
        assert_eq!(error.to_string(), "has more than 5 tokens");
        tokenizer(5, Truncation::Off).encode(&one(&"a b c d ".repeat(1000))).unwrap_err();
    }

    #[test]
    fn what_is_cut_off_is_not_read() {
        // The words that count are the same as those of a text that is read as a whole; a text that
        // is mostly white space, or one word, is read on until there are enough, or no more.
        let words: String = (0..2000).map(|word| ["a ", "b ", "c ", "d  "][word * 7 % 4]).collect();
        let sparse = format!("a{}b{}c d a", " ".repeat(3000), "\n".repeat(3000));
        let one_word = format!("{} a b", "e".repeat(10_000));
        for text in [words.as_str(), &sparse, &one_word, &"é ".repeat(5000), &"e".repeat(5000)] {
            for truncation in [Truncation::Right, Truncation::Left] {
                for max_input_tokens in [3, 4, 5, 12, 100] {
                    let tokenizer = tokenizer(max_input_tokens, truncation);
                    let whole = tokenizer.pieces(text.into(), true).unwrap();
                    let encoding = tokenizer.encode(&one(text)).unwrap();
                    assert_eq!(encoding.input_ids, whole.get_ids(), "{truncation:?}");
                    assert_eq!(encoding.truncated, !whole.get_overflowing().is_empty());
                }
            }
        }
        let tokenizer = tokenizer(4, Truncation::Right);
        assert!(tokenizer.enough(&words).unwrap().len() < 100);
        assert_eq!(tokenizer.enough(&one_word).unwrap().len(), one_word.len());
    }

    #[test]
    fn a_limit_that_leaves_no_room_is_refused() {
        let limits = TokenLimits { max_input_tokens: 2, truncation: Truncation::Right };
        let error = Tokenizer::new(JSON.as_bytes(), limits).unwrap_err();
        assert_eq!(error.to_string(), "limit is 2 tokens, 2 of them special");
    }
}
