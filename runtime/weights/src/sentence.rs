use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the library sentence-transformers keeps what `config.json` does not say.
pub(crate) const SENTENCE_FILES: [&str; 3] =
    ["1_Pooling/config.json", "sentence_bert_config.json", "config_sentence_transformers.json"];

/// How a model makes embeddings of texts, as its makers say in the files of sentence-transformers.
/// Any of it may be left open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sentence {
    /// How hidden states become one row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pooling: Option<String>,
    /// Most tokens of a text, where that is fewer than the model has positions for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_seq_length: Option<usize>,
    /// What is put before texts, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub prompts: BTreeMap<String, String>,
    /// The one that is used if nobody names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_prompt_name: Option<String>,
}

#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(flatten)]
    keys: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
struct LengthConfig {
    max_seq_length: Option<usize>,
}

#[derive(Deserialize)]
struct PromptsConfig {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

impl Sentence {
    /// Reads the files of [`SENTENCE_FILES`], in their order; `None` for one that is not there.
    ///
    /// # Errors
    ///
    /// The name of the file, and what is wrong with it.
    pub(crate) fn parse(files: &[Option<Vec<u8>>; 3]) -> Result<Self, (&'static str, String)> {
        let [pooling, length, prompts] = [0, 1, 2].map(|index| files[index].as_deref());
        let refuse = |index: usize| {
            move |error: serde_json::Error| (SENTENCE_FILES[index], error.to_string())
        };
        let mut sentence = Self::default();
        if let Some(json) = pooling {
            let config: PoolingConfig = serde_json::from_slice(json).map_err(refuse(0))?;
            sentence.pooling = config.pooling();
        }
        if let Some(json) = length {
            let config: LengthConfig = serde_json::from_slice(json).map_err(refuse(1))?;
            sentence.max_seq_length = config.max_seq_length;
        }
        if let Some(json) = prompts {
            let config: PromptsConfig = serde_json::from_slice(json).map_err(refuse(2))?;
            sentence.prompts = config.prompts;
            sentence.default_prompt_name = config.default_prompt_name;
        }
        if let Some(name) = &sentence.default_prompt_name
            && !sentence.prompts.contains_key(name)
        {
            return Err((SENTENCE_FILES[2], format!("there is no prompt \"{name}\"")));
        }
        Ok(sentence)
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl PoolingConfig {
    /// The modes that are switched on, joined by `+`: an engine may know them or not.
    fn pooling(&self) -> Option<String> {
        if let Some(serde_json::Value::String(mode)) = self.keys.get("pooling_mode") {
            return Some(mode.clone());
        }
        let modes = self.keys.iter().filter(|(_, on)| **on == serde_json::Value::Bool(true));
        let modes = modes.filter_map(|(key, _)| {
            let mode = key.strip_prefix("pooling_mode_")?;
            Some(match mode {
                "mean_tokens" => "mean",
                "cls_token" => "cls",
                "max_tokens" => "max",
                "lasttoken" => "last",
                other => other,
            })
        });
        let modes: Vec<&str> = modes.collect();
        (!modes.is_empty()).then(|| modes.join("+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(files: [Option<&str>; 3]) -> Result<Sentence, (&'static str, String)> {
        Sentence::parse(&files.map(|file| file.map(|json| json.as_bytes().to_vec())))
    }

    #[test]
    fn files_say_how_texts_become_embeddings() {
        let sentence = parse([
            Some(
                r#"{"word_embedding_dimension": 384, "pooling_mode_cls_token": true,
                "pooling_mode_mean_tokens": false, "include_prompt": true}"#,
            ),
            Some(r#"{"max_seq_length": 256, "do_lower_case": false}"#),
            Some(
                r#"{"prompts": {"query": "query: ", "passage": ""},
                "default_prompt_name": "query", "similarity_fn_name": "cosine"}"#,
            ),
        ]);
        let prompts = [("query", "query: "), ("passage", "")];
        let expected = Sentence {
            pooling: Some("cls".to_owned()),
            max_seq_length: Some(256),
            prompts: prompts.map(|(name, text)| (name.to_owned(), text.to_owned())).into(),
            default_prompt_name: Some("query".to_owned()),
        };
        assert_eq!(sentence.unwrap(), expected);
        assert!(parse([None, None, None]).unwrap().is_empty());
        assert!(parse([Some("{}"), Some("{}"), Some("{}")]).unwrap().is_empty());
    }

    #[test]
    fn poolings_are_named_as_settings_name_them() {
        let cases = [
            (r#"{"pooling_mode_mean_tokens": true}"#, "mean"),
            (r#"{"pooling_mode_max_tokens": true}"#, "max"),
            (r#"{"pooling_mode_lasttoken": true}"#, "last"),
            (r#"{"pooling_mode": "cls"}"#, "cls"),
            (r#"{"pooling_mode_weightedmean_tokens": true}"#, "weightedmean_tokens"),
            (r#"{"pooling_mode_max_tokens": true, "pooling_mode_mean_tokens": true}"#, "max+mean"),
        ];
        for (json, pooling) in cases {
            let sentence = parse([Some(json), None, None]).unwrap();
            assert_eq!(sentence.pooling.as_deref(), Some(pooling), "{json}");
        }
    }

    #[test]
    fn a_file_that_says_nothing_sensible_is_named() {
        let (file, _) = parse([Some("[]"), None, None]).unwrap_err();
        assert_eq!(file, SENTENCE_FILES[0]);
        let (file, _) = parse([None, Some(r#"{"max_seq_length": -1}"#), None]).unwrap_err();
        assert_eq!(file, SENTENCE_FILES[1]);
        let (file, reason) =
            parse([None, None, Some(r#"{"default_prompt_name": "query"}"#)]).unwrap_err();
        assert_eq!(file, SENTENCE_FILES[2]);
        assert_eq!(reason, r#"there is no prompt "query""#);
    }
}
