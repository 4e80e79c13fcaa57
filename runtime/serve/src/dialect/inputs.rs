//! What dialects have in common: texts, options, and what the OpenAPI document says of them. Limits
//! that are settings stand there as [`LIMIT`], until the document is asked for.

use std::{borrow::Cow, fmt, marker::PhantomData};

use pipeline::{Text, Truncation};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{Error, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use crate::{endpoint::Texts, json::Object};

/// A key of a schema, whose value names a limit of the function or the model.
pub(crate) const LIMIT: &str = "x-limit";

/// A type that stands only in schemas, for `#[schemars(with = "…")]`.
macro_rules! schema {
    ($(#[doc = $doc:literal])* $name:ident, $title:literal, $schema:tt) => {
        $(#[doc = $doc])*
        #[derive(Debug)]
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

schema! {
    /// A text with something in it.
    OneText, "OneText", {
        "type": "string",
        "minLength": 1,
        "pattern": r"[^\s\x00-\x1f\x7f-\x9f]",
        "x-limit": "chars",
    }
}
schema! {
    /// Token ids of one text.
    TokenIds, "TokenIds", {
        "type": "array",
        "minItems": 1,
        "items": { "type": "integer", "minimum": 0, "maximum": u32::MAX },
        "x-limit": "ids",
    }
}

/// As many as a request may have texts.
#[derive(Debug)]
pub(crate) struct Many<T>(PhantomData<T>);

impl<T: JsonSchema> JsonSchema for Many<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Many{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let items = generator.subschema_for::<T>();
        json_schema!({ "type": "array", "minItems": 1, "items": items, "x-limit": "texts" })
    }
}

schema! {
    /// How many of something, or `null`.
    Count, "Count", { "type": ["integer", "null"], "minimum": 1, "maximum": u32::MAX }
}
schema! {
    /// How many labels, or `null`.
    TopK, "TopK", { "type": ["integer", "null"], "minimum": 1, "x-limit": "labels" }
}
schema! {
    /// How many numbers of a vector, or `null`.
    Dimensions, "Dimensions", { "type": ["integer", "null"], "minimum": 1, "x-limit": "dimensions" }
}
schema! {
    /// Which prompt, or `null`.
    PromptName, "PromptName", { "type": ["string", "null"], "x-limit": "prompts" }
}

/// One text or several, as most dialects send them.
#[derive(Debug)]
pub(crate) enum Inputs {
    One(String),
    Many(Vec<String>),
}

impl Inputs {
    /// As `field` of the request.
    pub(crate) fn texts(self, field: &'static str) -> Texts {
        match self {
            Self::One(text) => Texts::one(field, text),
            Self::Many(texts) => Texts::many(field, texts),
        }
    }
}

impl<'de> Deserialize<'de> for Inputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;

        impl<'de> Visitor<'de> for Strings {
            type Value = Inputs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Inputs, E> {
                Ok(Inputs::One(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Inputs, E> {
                Ok(Inputs::One(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, texts: A) -> Result<Inputs, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(texts)).map(Inputs::Many)
            }
        }

        deserializer.deserialize_any(Strings)
    }
}

impl JsonSchema for Inputs {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Inputs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let [one, many] =
            [OneText::json_schema(generator), <Many<OneText>>::json_schema(generator)];
        json_schema!({ "anyOf": [one, many] })
    }
}

/// One text or several, each of which may be a pair: `"a"`, `["a"]`, `["a", "b"]` (a pair),
/// `[["a"], ["b", "c"]]`.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a text as a string or an array of one or two, or an array of such arrays"
)]
pub(crate) enum PairInputs {
    Alone(String),
    One(OneOrTwo),
    Many(Vec<OneOrTwo>),
}

/// A text by itself, or two as one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrTwo {
    One([String; 1]),
    Two([String; 2]),
}

impl From<OneOrTwo> for Text {
    fn from(texts: OneOrTwo) -> Self {
        match texts {
            OneOrTwo::One([text]) => Self::One(text),
            OneOrTwo::Two([first, second]) => Self::Pair(first.into(), second),
        }
    }
}

impl PairInputs {
    /// As `field` of the request.
    pub(crate) fn texts(self, field: &'static str) -> Texts {
        match self {
            Self::Alone(text) => Texts::one(field, text),
            Self::One(texts) => Texts::one(field, texts),
            Self::Many(many) => Texts::many(field, many),
        }
    }

    /// Whether it is an array of texts, even of one.
    pub(crate) fn are_many(&self) -> bool {
        matches!(self, Self::Many(_))
    }
}

impl JsonSchema for PairInputs {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PairInputs".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = OneText::json_schema(generator);
        let pair = json_schema!({
            "type": "array", "minItems": 1, "maxItems": 2, "items": text,
        });
        let many = json_schema!({
            "type": "array", "minItems": 1, "items": pair, "x-limit": "texts",
        });
        json_schema!({ "anyOf": [text, pair, many] })
    }
}

/// A text by itself or in an object.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a string or an object with a text")]
#[schemars(inline)]
pub(crate) enum TextItem {
    Text(#[schemars(with = "OneText")] String),
    Object(Object<TextField>),
}

/// The object around a text.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(crate) struct TextField {
    #[schemars(with = "OneText")]
    text: String,
}

impl TextItem {
    pub(crate) fn into_text(self) -> String {
        let (Self::Text(text) | Self::Object(Object(TextField { text }))) = self;
        text
    }
}

/// Which end of a text that is too long is cut off.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[schemars(inline)]
pub(crate) enum Direction {
    /// The beginning.
    #[serde(alias = "left")]
    Left,
    /// The end.
    #[serde(alias = "right")]
    Right,
}

/// What `truncate` and `truncation_direction` ask for together; `None`: nothing.
pub(crate) fn truncation(
    truncate: Option<bool>,
    direction: Option<Direction>,
) -> Option<Truncation> {
    match (truncate, direction) {
        (Some(false), _) => Some(Truncation::Off),
        (_, Some(Direction::Left)) => Some(Truncation::Left),
        (Some(true), _) | (_, Some(Direction::Right)) => Some(Truncation::Right),
        (None, None) => None,
    }
}

/// A label and how well it fits.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct LabelScore {
    /// As the model's `config.json` names it.
    pub(crate) label: String,
    /// 0 to 1, or the model's logit.
    pub(crate) score: f32,
}

impl From<pipeline::LabelScore> for LabelScore {
    fn from(label: pipeline::LabelScore) -> Self {
        Self { label: label.label, score: label.score }
    }
}

/// Labels of each text, best first.
pub(crate) fn labels(rows: Vec<Vec<pipeline::LabelScore>>) -> Vec<Vec<LabelScore>> {
    rows.into_iter().map(|row| row.into_iter().map(Into::into).collect()).collect()
}
