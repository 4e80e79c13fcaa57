//! What BERT's tokenizers make of plain ASCII, without the library's account of where each piece
//! came from: its answers, in a fraction of its time.

use tokenizers::{
    Encoding as Pieces, NormalizerWrapper, PostProcessor, PreTokenizerWrapper, Token,
};

use crate::{
    tokenize::{Around, Encoding, Text},
    wordpiece::WordPiece,
};

/// Stand for the texts in a template.
const TEXTS: [u32; 2] = [u32::MAX, u32::MAX - 1];

/// How a `tokenizer.json` of BERT's kind treats ASCII.
#[derive(Debug)]
pub(crate) struct Ascii {
    /// What each byte is.
    classes: [Class; 256],
    /// Ids and segments around one text, and around two.
    templates: [Vec<(u32, u32)>; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// A part of a word, in lowercase if the model has it so.
    Word(u8),
    /// A word by itself.
    Punctuation,
    /// Between words.
    Space,
    /// Removed.
    Control,
    /// May be, or begin, what is not known here.
    Unknown,
}

impl Ascii {
    /// `None` if `library` does not go by BERT's rules.
    pub(crate) fn new(library: &Around<WordPiece>) -> Option<Self> {
        let Some(NormalizerWrapper::BertNormalizer(normalizer)) = library.get_normalizer() else {
            return None;
        };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = library.get_pre_tokenizer() else {
            return None;
        };
        if !normalizer.clean_text {
            return None;
        }
        let mut classes = [Class::Unknown; 256];
        for byte in 0..=0x7f_u8 {
            classes[usize::from(byte)] = match byte {
                b'\t' | b'\n' | b'\r' | b' ' => Class::Space,
                _ if byte.is_ascii_control() => Class::Control,
                _ if byte.is_ascii_punctuation() => Class::Punctuation,
                _ if normalizer.lowercase => Class::Word(byte.to_ascii_lowercase()),
                _ => Class::Word(byte),
            };
        }
        for token in library.get_added_vocabulary().get_added_tokens_decoder().values() {
            if token.normalized {
                return None;
            }
            if let Some(&first) = token.content.as_bytes().first() {
                classes[usize::from(first)] = Class::Unknown;
            }
        }
        Some(Self { classes, templates: [template(library, 1)?, template(library, 2)?] })
    }

    /// The library's encoding of `text`; `None` if that is not ASCII, may have one of the tokens
    /// that were added to the vocabulary, or has more than `max_input_tokens`.
    pub(crate) fn encode(
        &self,
        model: &WordPiece,
        text: &Text,
        max_input_tokens: usize,
    ) -> Option<Encoding> {
        let (texts, template): (&[&str], _) = match text {
            Text::One(text) => (&[text], &self.templates[0]),
            Text::Pair(first, second) => (&[first, second], &self.templates[1]),
        };
        // Most words have more letters than that, and a space behind them.
        let num_ids = 4 + text.len() / 4;
        let mut encoding = Encoding {
            input_ids: Vec::with_capacity(num_ids),
            token_type_ids: Vec::with_capacity(num_ids),
            truncated: false,
        };
        for &(id, segment) in template {
            let input_ids = &mut encoding.input_ids;
            match TEXTS.iter().position(|&text| text == id) {
                Some(index) => self.push_ids(model, texts[index], input_ids)?,
                None => input_ids.push(id),
            }
            encoding.token_type_ids.resize(input_ids.len(), segment);
        }
        (encoding.input_ids.len() <= max_input_tokens).then_some(encoding)
    }

    fn push_ids(&self, model: &WordPiece, text: &str, ids: &mut Vec<u32>) -> Option<()> {
        let mut word = String::new();
        for byte in text.bytes() {
            match self.classes[usize::from(byte)] {
                Class::Word(byte) => word.push(byte.into()),
                Class::Control => {}
                Class::Unknown => return None,
                boundary => {
                    if !word.is_empty() {
                        model.push_ids(&word, ids)?;
                        word.clear();
                    }
                    if boundary == Class::Punctuation {
                        model.push_ids(char::from(byte).encode_utf8(&mut [0; 4]), ids)?;
                    }
                }
            }
        }
        if word.is_empty() { Some(()) } else { model.push_ids(&word, ids) }
    }
}

/// What `library` puts around `num_texts` texts of one token each.
fn template(library: &Around<WordPiece>, num_texts: usize) -> Option<Vec<(u32, u32)>> {
    let mut texts = TEXTS[..num_texts].iter().map(|&id| {
        Pieces::from_tokens(vec![Token { id, value: String::new(), offsets: (0, 0) }], 0)
    });
    let (first, second) = (texts.next()?, texts.next());
    let whole = library.get_post_processor()?.process(first, second, true).ok()?;
    Some(whole.get_ids().iter().copied().zip(whole.get_type_ids().iter().copied()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokenizers::EncodeInput;

    use super::*;

    const MAX_INPUT_TOKENS: usize = 64;

    /// BERT's tokenizer over a small vocabulary.
    fn json() -> Value {
        let vocabulary = json!({
            "[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3, "a": 4, "b": 5, "c": 6, "A": 7,
            "##a": 8, "##b": 9, "ab": 10, "##ca": 11, "!": 12, ",": 13, "'": 14, "[": 15,
            "mask": 16, "]": 17, "##'": 18,
        });
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [{"id": 3, "content": "[MASK]", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "normalizer": {"type": "BertNormalizer", "clean_text": true,
                "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 6, "vocab": vocabulary},
        })
    }

    fn library(json: &Value) -> Around<WordPiece> {
        serde_json::from_value(json.clone()).unwrap()
    }

    /// Texts of what ASCII has to offer, and a little more.
    fn texts() -> Vec<String> {
        let parts = [
            "a", "b", "ab", "aba", "abca", "A", "AB", "Q", " ", "  ", "\n", "\t", "\r", "\u{b}",
            "\u{c}", "\0", "\u{1}", "\u{7f}", "!", ",", "'", "a'b", "[", "]", "[MASK]", "mask",
            "[mask]", "aaaaaa", "aaaaaaa", "é", "\u{fffd}", "日", "\u{a0}",
        ];
        let mut state = 1_u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % bound
        };
        // Half of them know nothing of the last parts.
        let mut text = |index: usize| {
            let num_parts = parts.len() - if index.is_multiple_of(2) { 11 } else { 0 };
            (0..below(12)).map(|_| parts[below(num_parts)]).collect()
        };
        (0..4000).map(&mut text).collect()
    }

    #[test]
    fn ascii_is_tokenized_as_the_library_tokenizes_it() {
        let mut cased = json();
        cased["normalizer"]["lowercase"] = json!(false);
        let mut template = json();
        template["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 2}},
                {"Sequence": {"id": "A", "type_id": 1}}],
            "pair": [{"Sequence": {"id": "B", "type_id": 1}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1, 3], "tokens": ["[CLS]", "x"]},
                "[SEP]": {"id": "[SEP]", "ids": [2], "tokens": ["[SEP]"]}},
        });
        for json in [json(), cased, template] {
            let library = library(&json);
            let ascii = Ascii::new(&library).unwrap();
            let texts = texts();
            let ones = texts.iter().cloned().map(Text::One);
            let pairs =
                texts.windows(2).map(|pair| Text::Pair((&*pair[0]).into(), pair[1].clone()));
            let mut num_known = 0;
            for text in ones.chain(pairs) {
                let Some(known) = ascii.encode(library.get_model(), &text, MAX_INPUT_TOKENS) else {
                    continue;
                };
                num_known += 1;
                let input: EncodeInput<'_> = match &text {
                    Text::One(text) => text.as_str().into(),
                    Text::Pair(first, second) => (&**first, second.as_str()).into(),
                };
                let expected = library.encode_fast(input, true).unwrap();
                assert_eq!(known.input_ids, expected.get_ids(), "{text:?}");
                assert_eq!(known.token_type_ids, expected.get_type_ids(), "{text:?}");
            }
            assert!(num_known > 2000, "{num_known}");
        }
    }

    #[test]
    fn what_it_does_not_know_is_left_to_the_library() {
        let whole = library(&json());
        let ascii = Ascii::new(&whole).unwrap();
        let encode = |text: &str, max| {
            ascii
                .encode(whole.get_model(), &Text::One(text.to_owned()), max)
                .map(|known| known.input_ids)
        };
        assert_eq!(encode("a b", 4), Some(vec![1, 4, 5, 2]));
        for text in ["a [MASK]", "a [", "é", "a b c"] {
            assert_eq!(encode(text, 4), None, "{text}");
        }
        for (field, value) in [
            ("/normalizer/clean_text", json!(false)),
            ("/normalizer", json!({"type": "Lowercase"})),
            ("/pre_tokenizer", json!({"type": "Whitespace"})),
            ("/post_processor", json!(null)),
            ("/added_tokens/0/normalized", json!(true)),
        ] {
            let mut other = json();
            *other.pointer_mut(field).unwrap() = value;
            assert!(Ascii::new(&library(&other)).is_none(), "{field}");
        }
    }
}
