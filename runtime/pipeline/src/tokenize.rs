use std::{ops::Range, sync::Arc};

use tokenizers::{
    DecoderWrapper, Encoding as Pieces, NormalizerWrapper, PostProcessor, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer as Library, TokenizerImpl, TruncationDirection,
    TruncationParams, TruncationStrategy, truncate_encodings,
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

/// What a model reads at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// A text by itself.
    One(String),
    /// Two texts as one sequence, of two segments.
    Pair(Arc<str>, String),
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::One(text)
    }
}

impl Text {
    /// Unicode characters of it.
    pub(crate) fn num_chars(&self) -> usize {
        match self {
            Self::One(text) => text.chars().count(),
            Self::Pair(first, second) => first.chars().count() + second.chars().count(),
        }
    }

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
const BYTES_PER_TOKEN: usize = 8;

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

/// One token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// As the model reads it.
    pub id: u32,
    /// The part of the text it stands for; of a special token, its name.
    pub text: String,
    /// Where that part lies, in Unicode characters; `None` for a special token.
    pub place: Option<Range<usize>>,
}

/// What cuts words into pieces.
#[derive(Debug)]
enum Kind {
    WordPiece(Box<Around<WordPiece>>, Option<Box<Ascii>>),
    /// Any other model: the library's own.
    Library(Box<Library>),
}

/// Runs `$body` with `$library`, whatever cuts words into pieces.
macro_rules! with {
    ($kind:expr, |$library:ident| $body:expr) => {
        match $kind {
            Kind::WordPiece($library, _) => $body,
            Kind::Library($library) => $body,
        }
    };
}

/// Text to token ids, by the rules of a `tokenizer.json`.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    kind: Kind,
    limits: TokenLimits,
    /// Tokens that are added to every text, and to every pair.
    num_special: [usize; 2],
}

impl Tokenizer {
    /// Reads `tokenizer.json`; padding and truncation it asks for give way to `limits`.
    pub(crate) fn new(json: &[u8], limits: TokenLimits) -> Result<Self, PipelineError> {
        let mut kind = match serde_json::from_slice::<Around<WordPiece>>(json) {
            Ok(library) => {
                let ascii = Ascii::new(&library).map(Box::new);
                Kind::WordPiece(Box::new(library), ascii)
            }
            Err(_) => Kind::Library(Box::new(
                Library::from_bytes(json).map_err(PipelineError::Tokenizer)?,
            )),
        };
        let num_special = with!(&mut kind, |library| {
            library.with_padding(None).with_truncation(None).map_err(PipelineError::Tokenizer)?;
            let added = library.get_post_processor();
            [false, true].map(|is_pair| added.map_or(0, |added| added.added_tokens(is_pair)))
        });
        if limits.max_input_tokens <= num_special[0] {
            let max_input_tokens = limits.max_input_tokens;
            return Err(PipelineError::NoRoom { max_input_tokens, num_special: num_special[0] });
        }
        Ok(Self { kind, limits, num_special })
    }

    /// Most tokens of a text, and what happens to more unless somebody says otherwise.
    pub(crate) fn limits(&self) -> TokenLimits {
        self.limits
    }

    /// The ids of `text`. Of a pair that is too long, the longer text is cut first.
    pub(crate) fn encode(
        &self,
        text: &Text,
        truncation: Truncation,
    ) -> Result<Encoding, PipelineError> {
        if let Some(encoding) = self.encode_ascii(text) {
            return Ok(encoding);
        }
        let (first, second) = match text {
            Text::One(text) => (text.as_str(), None),
            Text::Pair(first, second) => (&**first, Some(second.as_str())),
        };
        let first = self.pieces(self.enough(first, truncation)?)?;
        let second = second.map(|text| self.pieces(self.enough(text, truncation)?)).transpose()?;

        let max_input_tokens = self.limits.max_input_tokens;
        let room = max_input_tokens.saturating_sub(self.num_special[usize::from(second.is_some())]);
        let truncated = first.len() + second.as_ref().map_or(0, Pieces::len) > room;
        if truncated && truncation == Truncation::Off {
            return Err(PipelineError::TooManyTokens { index: 0, max_input_tokens });
        }
        let (first, second) = cut(first, second, room, truncation)?;
        let whole = with!(&self.kind, |library| library.post_process(first, second, true));
        let whole = whole.map_err(PipelineError::Tokenizer)?;
        Ok(Encoding {
            input_ids: whole.get_ids().to_vec(),
            token_type_ids: whole.get_type_ids().to_vec(),
            truncated,
        })
    }

    /// [`Self::encode`] for a text that is ASCII and needs no cutting, if the model goes by BERT's
    /// rules.
    pub(crate) fn encode_ascii(&self, text: &Text) -> Option<Encoding> {
        let Kind::WordPiece(library, Some(ascii)) = &self.kind else {
            return None;
        };
        let max_input_tokens = self.limits.max_input_tokens;
        // No more than a few tokens are longer; what is longer as a whole is likely to be cut.
        if text.len() > max_input_tokens.saturating_mul(BYTES_PER_TOKEN) {
            return None;
        }
        ascii.encode(library.get_model(), text, max_input_tokens)
    }

    /// The tokens of the whole of `text`, with those that are added if `add_special_tokens`.
    pub(crate) fn tokens(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<Token>, PipelineError> {
        let pieces =
            with!(&self.kind, |library| library.encode_char_offsets(text, add_special_tokens));
        let pieces = pieces.map_err(PipelineError::Tokenizer)?;
        // Where each character begins, and the end.
        let mut starts: Vec<usize> = text.char_indices().map(|(start, _)| start).collect();
        starts.push(text.len());
        let tokens = (0..pieces.len()).map(|index| {
            let id = pieces.get_ids()[index];
            let (start, end) = pieces.get_offsets()[index];
            match pieces.get_special_tokens_mask()[index] {
                0 => Token {
                    id,
                    text: text[starts[start]..starts[end]].to_owned(),
                    place: Some(start..end),
                },
                _ => Token { id, text: pieces.get_tokens()[index].clone(), place: None },
            }
        });
        Ok(tokens.collect())
    }

    /// The text that `ids` stand for; ids that there are not stand for nothing.
    pub(crate) fn decode(
        &self,
        ids: &[u32],
        skip_special_tokens: bool,
    ) -> Result<String, PipelineError> {
        let text = with!(&self.kind, |library| library.decode(ids, skip_special_tokens));
        text.map_err(PipelineError::Tokenizer)
    }

    fn pieces(&self, text: &str) -> Result<Pieces, PipelineError> {
        let pieces = with!(&self.kind, |library| library.encode_fast(text, false));
        pieces.map_err(PipelineError::Tokenizer)
    }

    /// The part of `text`, from the side that stays, that has all tokens that count: what lies
    /// beyond cannot change the answer, since words do not depend on words further on.
    fn enough<'a>(&self, text: &'a str, truncation: Truncation) -> Result<&'a str, PipelineError> {
        let max_input_tokens = self.limits.max_input_tokens;
        let mut len = max_input_tokens.saturating_mul(BYTES_PER_TOKEN);
        while let Some(part) = part(text, len, truncation) {
            if self.pieces(part)?.len() > max_input_tokens {
                return Ok(part);
            }
            len = part.len().saturating_mul(4);
        }
        Ok(text)
    }
}

/// What is left of one text, or of two, in `room` tokens.
fn cut(
    first: Pieces,
    second: Option<Pieces>,
    room: usize,
    truncation: Truncation,
) -> Result<(Pieces, Option<Pieces>), PipelineError> {
    let direction = match truncation {
        Truncation::Left => TruncationDirection::Left,
        Truncation::Right | Truncation::Off => TruncationDirection::Right,
    };
    let strategy = TruncationStrategy::LongestFirst;
    let params = TruncationParams { direction, max_length: room, strategy, stride: 0 };
    truncate_encodings(first, second, &params).map_err(PipelineError::Tokenizer)
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
            let tokenizer = tokenizer(max_input_tokens, Truncation::Right);
            let encoding = tokenizer.encode(&one("a b c d"), truncation).unwrap();
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
            let encoding = tokenizer.encode(&pair(first, second), Truncation::Right).unwrap();
            assert_eq!(encoding.input_ids, input_ids, "{first}, {second}");
            assert_eq!(encoding.token_type_ids, token_type_ids, "{first}, {second}");
            assert_eq!(encoding.truncated, truncated, "{first}, {second}");
        }
    }

    #[test]
    fn long_texts_are_refused_when_truncation_is_off() {
        let tokenizer = tokenizer(5, Truncation::Right);
        let error = tokenizer.encode(&one("a b c d"), Truncation::Off).unwrap_err();
        assert_eq!(error.to_string(), "has more than 5 tokens");
        tokenizer.encode(&one(&"a b c d ".repeat(1000)), Truncation::Off).unwrap_err();
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
                    let room = max_input_tokens - 2;
                    let whole = tokenizer.pieces(text).unwrap();
                    let truncated = whole.len() > room;
                    let (kept, _) = cut(whole, None, room, truncation).unwrap();
                    let encoding = tokenizer.encode(&one(text), truncation).unwrap();
                    let between = 1..encoding.input_ids.len() - 1;
                    assert_eq!(encoding.input_ids[between], *kept.get_ids(), "{truncation:?}");
                    assert_eq!(encoding.truncated, truncated);
                }
            }
        }
        let tokenizer = tokenizer(4, Truncation::Right);
        assert!(tokenizer.enough(&words, Truncation::Right).unwrap().len() < 100);
        assert_eq!(tokenizer.enough(&one_word, Truncation::Left).unwrap().len(), one_word.len());
    }

    #[test]
    fn a_limit_that_leaves_no_room_is_refused() {
        let limits = TokenLimits { max_input_tokens: 2, truncation: Truncation::Right };
        let error = Tokenizer::new(JSON.as_bytes(), limits).unwrap_err();
        assert_eq!(error.to_string(), "limit is 2 tokens, 2 of them special");
    }

    #[test]
    fn tokens_say_where_they_come_from() {
        let tokens = tokenizer(3, Truncation::Right).tokens("a é b", true).unwrap();
        let seen: Vec<_> = tokens
            .iter()
            .map(|token| (token.id, token.text.as_str(), token.place.clone()))
            .collect();
        let expected = [
            (1, "[CLS]", None),
            (3, "a", Some(0..1)),
            (0, "é", Some(2..3)),
            (4, "b", Some(4..5)),
            (2, "[SEP]", None),
        ];
        assert_eq!(seen, expected);
        assert_eq!(tokenizer(3, Truncation::Right).tokens("a", false).unwrap().len(), 1);
    }

    #[test]
    fn ids_become_text_again() {
        let tokenizer = tokenizer(3, Truncation::Right);
        assert_eq!(tokenizer.decode(&[3, 4, 99, 5], true).unwrap(), "a b c");
    }
}
