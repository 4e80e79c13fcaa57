//! WordPiece with a vocabulary that is read without an allocation a piece: the library's takes
//! longer to load than a model that is mapped.

use std::{
    borrow::Cow,
    collections::HashMap,
    fmt,
    hash::BuildHasher,
    ops::Range,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use hashbrown::{DefaultHashBuilder, HashTable};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, Visitor},
};
use tokenizers::{Model, Token, models::wordpiece::WordPieceTrainer};

/// The longest known piece at each place of a word, or `unk_token` for the whole word.
///
/// # Source
///
/// Wu et al. 2016, *Google's Neural Machine Translation System*, §4.1, as BERT matches it.
#[derive(Debug)]
pub(crate) struct WordPiece {
    vocabulary: Vocabulary,
    unk_token: String,
    continuing_subword_prefix: String,
    max_input_chars_per_word: usize,
}

impl WordPiece {
    /// Appends the ids of `word`'s pieces; `None` if it is unknown and there is no id for that.
    pub(crate) fn push_ids(&self, word: &str, ids: &mut Vec<u32>) -> Option<()> {
        let start = ids.len();
        if !self.cut(word, |id, _| ids.push(id)) {
            ids.truncate(start);
            ids.push(self.vocabulary.id(&self.unk_token)?);
        }
        Some(())
    }

    /// Gives `take` the id of each piece of `word` and where it lies; `false` if the word is
    /// unknown, and with it what was given before.
    fn cut(&self, word: &str, mut take: impl FnMut(u32, Range<usize>)) -> bool {
        if word.chars().count() > self.max_input_chars_per_word {
            return false;
        }
        let mut start = 0;
        // What is left of the word, behind what marks a piece that is not its first.
        let mut rest = Cow::Borrowed(word);
        let mut prefix = 0;
        while start < word.len() {
            if start > 0 {
                prefix = self.continuing_subword_prefix.len();
                rest = Cow::Owned([&self.continuing_subword_prefix, &word[start..]].concat());
            }
            let mut end = rest.len();
            let id = loop {
                if let Some(id) = self.vocabulary.id(&rest[..end]) {
                    break id;
                }
                end -= rest[..end].chars().next_back().map_or(1, char::len_utf8);
                if end <= prefix {
                    return false;
                }
            };
            let next = start + end - prefix;
            take(id, start..next);
            start = next;
        }
        true
    }
}

impl Model for WordPiece {
    type Trainer = WordPieceTrainer;

    fn tokenize(&self, word: &str) -> tokenizers::Result<Vec<Token>> {
        let mut tokens = Vec::new();
        let is_known = self.cut(word, |id, place| {
            let prefix = if place.start > 0 { &self.continuing_subword_prefix } else { "" };
            let value = [prefix, &word[place.clone()]].concat();
            tokens.push(Token { id, value, offsets: (place.start, place.end) });
        });
        if is_known {
            return Ok(tokens);
        }
        let id = self.vocabulary.id(&self.unk_token);
        let id = id.ok_or_else(|| format!("the vocabulary has no {}", self.unk_token))?;
        Ok(vec![Token { id, value: self.unk_token.clone(), offsets: (0, word.len()) }])
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.vocabulary.id(token)
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.vocabulary.piece(id).map(str::to_owned)
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.vocabulary.pieces().map(|(piece, id)| (piece.to_owned(), id)).collect()
    }

    fn get_vocab_size(&self) -> usize {
        self.vocabulary.places.len()
    }

    fn save(&self, _: &Path, _: Option<&str>) -> tokenizers::Result<Vec<PathBuf>> {
        Err("this vocabulary is only read".into())
    }

    fn get_trainer(&self) -> Self::Trainer {
        WordPieceTrainer::default()
    }
}

/// Pieces and their ids.
#[derive(Debug, Default)]
struct Vocabulary {
    /// All pieces, one behind the other.
    text: String,
    places: HashTable<Place>,
    hasher: DefaultHashBuilder,
    /// The other way round, once somebody asks.
    by_id: OnceLock<HashMap<u32, Range<usize>>>,
}

/// Where a piece lies in the text.
#[derive(Debug)]
struct Place {
    start: u32,
    end: u32,
    id: u32,
}

impl Place {
    fn of<'a>(&self, text: &'a str) -> &'a str {
        &text[self.start as usize..self.end as usize]
    }
}

impl Vocabulary {
    fn id(&self, piece: &str) -> Option<u32> {
        let is_it = |place: &Place| place.of(&self.text) == piece;
        self.places.find(self.hasher.hash_one(piece), is_it).map(|place| place.id)
    }

    /// Takes a piece in; gives its place, whose id is still to be set.
    fn insert(&mut self, piece: &str) -> Result<&mut Place, &'static str> {
        let Self { text, places, hasher, .. } = self;
        let hash = hasher.hash_one(piece);
        let start = text.len() as u32;
        let end = u32::try_from(text.len() + piece.len()).map_err(|_| "a vocabulary over 4 GiB")?;
        if places.find(hash, |place| place.of(text) == piece).is_none() {
            text.push_str(piece);
            let rehash = |place: &Place| hasher.hash_one(place.of(text));
            places.insert_unique(hash, Place { start, end, id: 0 }, rehash);
        }
        places.find_mut(hash, |place| place.of(text) == piece).ok_or("a piece got lost")
    }

    fn piece(&self, id: u32) -> Option<&str> {
        let ranges =
            self.places.iter().map(|place| (place.id, place.start as usize..place.end as usize));
        let by_id = self.by_id.get_or_init(|| ranges.collect());
        by_id.get(&id).map(|range| &self.text[range.clone()])
    }

    fn pieces(&self) -> impl Iterator<Item = (&str, u32)> {
        self.places.iter().map(|place| (place.of(&self.text), place.id))
    }
}

impl<'de> Deserialize<'de> for WordPiece {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = WordPiece;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a WordPiece model")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<WordPiece, A::Error> {
                let (mut kind, mut vocabulary) = (None, None);
                let (mut unk_token, mut prefix, mut max_chars) = (None, None, None);
                while let Some(name) = fields.next_key::<String>()? {
                    match name.as_str() {
                        "type" => {
                            let named: String = fields.next_value()?;
                            // Said at once: another model's vocabulary is not read for nothing.
                            if named != "WordPiece" {
                                return Err(A::Error::custom(format!("{named}, not WordPiece")));
                            }
                            kind = Some(named);
                        }
                        "vocab" => vocabulary = Some(fields.next_value()?),
                        "unk_token" => unk_token = Some(fields.next_value()?),
                        "continuing_subword_prefix" => prefix = Some(fields.next_value()?),
                        "max_input_chars_per_word" => max_chars = Some(fields.next_value()?),
                        _ => drop(fields.next_value::<IgnoredAny>()?),
                    }
                }
                kind.ok_or_else(|| A::Error::missing_field("type"))?;
                Ok(WordPiece {
                    vocabulary: vocabulary.ok_or_else(|| A::Error::missing_field("vocab"))?,
                    unk_token: unk_token.ok_or_else(|| A::Error::missing_field("unk_token"))?,
                    continuing_subword_prefix: prefix
                        .ok_or_else(|| A::Error::missing_field("continuing_subword_prefix"))?,
                    max_input_chars_per_word: max_chars
                        .ok_or_else(|| A::Error::missing_field("max_input_chars_per_word"))?,
                })
            }
        }

        deserializer.deserialize_map(Fields)
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pieces;

        impl<'de> Visitor<'de> for Pieces {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("pieces and their ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pieces: A) -> Result<Vocabulary, A::Error> {
                let mut vocabulary = Vocabulary::default();
                // As many as BERT has; more grow the table.
                let Vocabulary { places, .. } = &mut vocabulary;
                places.reserve(1 << 15, |_| 0);
                while let Some(id) = pieces.next_key_seed(Piece(&mut vocabulary))? {
                    id.id = pieces.next_value()?;
                }
                Ok(vocabulary)
            }
        }

        /// Takes in one piece as the text has it, without a `String` between.
        struct Piece<'a>(&'a mut Vocabulary);

        impl<'a, 'de> DeserializeSeed<'de> for Piece<'a> {
            type Value = &'a mut Place;

            fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<&'a mut Place, D::Error> {
                key.deserialize_str(self)
            }
        }

        impl<'a> Visitor<'_> for Piece<'a> {
            type Value = &'a mut Place;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a piece")
            }

            fn visit_str<E: Error>(self, piece: &str) -> Result<&'a mut Place, E> {
                self.0.insert(piece).map_err(E::custom)
            }
        }

        deserializer.deserialize_map(Pieces)
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::models::wordpiece::WordPiece as Library;

    use super::*;

    const JSON: &str = r###"{"type": "WordPiece", "unk_token": "[UNK]",
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 12,
        "vocab": {"[UNK]": 7, "un": 1, "##aff": 2, "##able": 3, "a": 4, "##a": 5, "é": 6,
            "##\u00e9": 8, "##": 9, "unaff": 10, "a": 11}}"###;

    #[test]
    fn words_are_cut_as_the_library_cuts_them() {
        let ours: WordPiece = serde_json::from_str(JSON).unwrap();
        let library: Library = serde_json::from_str(JSON).unwrap();
        let words = [
            "unaffable",
            "unaffableé",
            "a",
            "aa",
            "aé",
            "éa",
            "éé",
            "un",
            "unq",
            "x",
            "affable",
            "##",
            "##a",
            "",
            "aaaaaaaaaaaa",
            "aaaaaaaaaaaaa",
            "日本",
            "a日",
            "[UNK]",
            "a##",
        ];
        for word in words {
            let pieces = |tokens: Vec<Token>| {
                tokens.into_iter().map(|token| (token.id, token.value, token.offsets)).collect()
            };
            let ours: Vec<_> = pieces(ours.tokenize(word).unwrap());
            let library: Vec<_> = pieces(library.tokenize(word).unwrap());
            assert_eq!(ours, library, "{word}");
        }
        assert_eq!(ours.get_vocab(), library.get_vocab());
        assert_eq!(ours.get_vocab_size(), 10, "the last of two ids counts");
        assert_eq!(ours.token_to_id("a"), Some(11));
        assert_eq!(ours.id_to_token(8).as_deref(), Some("##é"));
    }

    #[test]
    fn other_models_are_refused() {
        let refusal = |json: &str| serde_json::from_str::<WordPiece>(json).unwrap_err().to_string();
        assert!(refusal(&JSON.replace("\"WordPiece\"", "\"BPE\"")).contains("BPE, not WordPiece"));
        assert!(
            refusal(&JSON.replace("unk_token", "unknown")).contains("missing field `unk_token`")
        );
        assert!(refusal(&JSON.replace("\"un\": 1", "\"un\": -1")).contains("invalid value"));
    }
}
