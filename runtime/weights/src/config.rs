use std::collections::BTreeMap;

use serde::Deserialize;

/// What `config.json` says of a model, in the Hugging Face spelling. Other keys are ignored.
#[derive(Debug, Deserialize)]
pub(crate) struct ModelConfig {
    #[serde(rename = "_name_or_path")]
    pub(crate) name: Option<String>,
    #[serde(default)]
    id2label: BTreeMap<String, String>,
    pub(crate) max_position_embeddings: usize,
    /// What the model should run in, if its makers say so: not a key of Hugging Face's.
    pub(crate) precision: Option<String>,
}

impl ModelConfig {
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let config: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if config.max_position_embeddings == 0 {
            return Err("max_position_embeddings is 0".to_owned());
        }
        Ok(config)
    }

    /// Label of each logit: `id2label` must map 0, 1, 2, … without a gap. A model without labels
    /// has none.
    pub(crate) fn labels(&self) -> Result<Vec<String>, String> {
        (0..self.id2label.len())
            .map(|id| {
                let label = self.id2label.get(&id.to_string());
                label.cloned().ok_or_else(|| format!("id2label has no entry for {id}"))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_in_the_order_of_their_ids() {
        let json = br#"{"id2label": {"10": "k", "0": "a", "1": "b", "2": "c", "3": "d", "4": "e",
            "5": "f", "6": "g", "7": "h", "8": "i", "9": "j"}, "max_position_embeddings": 512}"#;
        let labels = ModelConfig::parse(json).unwrap().labels().unwrap();
        assert_eq!(labels.concat(), "abcdefghijk");
    }

    #[test]
    fn a_broken_description_is_refused() {
        let cases = [
            ("{}", "missing field `max_position_embeddings` at line 1 column 2"),
            (
                r#"{"id2label":{"0":"a"},"max_position_embeddings":0}"#,
                "max_position_embeddings is 0",
            ),
            (
                r#"{"id2label":{"0":"a","2":"c"},"max_position_embeddings":8}"#,
                "id2label has no entry for 1",
            ),
        ];
        for (json, reason) in cases {
            let outcome = ModelConfig::parse(json.as_bytes()).and_then(|config| config.labels());
            assert_eq!(outcome.unwrap_err(), reason, "{json}");
        }
    }
}
