//! Tensors of the Open Inference Protocol: as JSON, or as raw bytes behind it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::ApiError;

/// A tensor that a request has, beside its name.
#[derive(Debug, Deserialize)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    pub(super) datatype: String,
    #[serde(default)]
    pub(super) parameters: Map<String, Value>,
    #[serde(default)]
    pub(super) data: Option<Value>,
}

impl Input {
    /// Its texts: from `binary`, whose front it takes, or from its JSON. `field` names it in errors.
    ///
    /// # Shapes
    ///
    /// - `[n]` or `[n, 1]`, `BYTES`
    pub(super) fn texts(self, binary: &mut &[u8], field: &str) -> Result<Vec<String>, ApiError> {
        let invalid = |message: String| ApiError::field("invalid_field", field, message);
        if self.datatype != "BYTES" {
            return Err(invalid(format!("the datatype is {}, not BYTES", self.datatype)));
        }
        let num_texts = match self.shape[..] {
            [num_texts] | [num_texts, 1] => num_texts,
            _ => return Err(invalid(format!("the shape is {:?}, not [n] or [n, 1]", self.shape))),
        };
        let texts = match (self.parameters.get("binary_data_size"), self.data) {
            (None, None) => {
                return Err(invalid("there is neither data nor binary_data_size".into()));
            }
            (Some(_), Some(_)) => {
                return Err(invalid("there are both data and binary_data_size".into()));
            }
            (None, Some(Value::Array(data))) => {
                let mut texts = Vec::new();
                strings(data, &mut texts).map_err(invalid)?;
                texts
            }
            (None, Some(_)) => return Err(invalid("the data is no array".into())),
            (Some(size), None) => {
                let size = size.as_u64().map(|size| size as usize);
                let Some((bytes, rest)) = size.and_then(|size| binary.split_at_checked(size))
                else {
                    return Err(invalid("binary_data_size is not what the body holds".into()));
                };
                *binary = rest;
                length_prefixed(bytes).map_err(invalid)?
            }
        };
        if texts.len() != num_texts {
            let message = format!("the shape says {num_texts} texts, the data has {}", texts.len());
            return Err(invalid(message));
        }
        Ok(texts)
    }
}

/// All strings in `values`, however they are nested.
fn strings(values: Vec<Value>, texts: &mut Vec<String>) -> Result<(), String> {
    for value in values {
        match value {
            Value::String(text) => texts.push(text),
            Value::Array(values) => strings(values, texts)?,
            other => return Err(format!("{other} is not a string")),
        }
    }
    Ok(())
}

/// Texts, each behind its length as 4 little-endian bytes.
fn length_prefixed(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk().ok_or("a length is cut off")?;
        let length = u32::from_le_bytes(*length) as usize;
        let (text, rest) = rest.split_at_checked(length).ok_or("a text is cut off")?;
        let text = str::from_utf8(text).map_err(|error| format!("a text is not UTF-8: {error}"))?;
        texts.push(text.to_owned());
        bytes = rest;
    }
    Ok(texts)
}

/// Numbers or texts, row by row.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "TensorData")]
pub(super) enum Data {
    Fp32(Vec<f32>),
    Bytes(Vec<String>),
}

impl Data {
    fn datatype(&self) -> &'static str {
        match self {
            Self::Fp32(_) => "FP32",
            Self::Bytes(_) => "BYTES",
        }
    }

    /// As raw bytes, at the end of `binary`.
    fn write(&self, binary: &mut Vec<u8>) {
        match self {
            Self::Fp32(numbers) => {
                numbers.iter().for_each(|number| binary.extend_from_slice(&number.to_le_bytes()));
            }
            Self::Bytes(texts) => {
                for text in texts {
                    binary.extend_from_slice(&(text.len() as u32).to_le_bytes());
                    binary.extend_from_slice(text.as_bytes());
                }
            }
        }
    }
}

/// A tensor that an answer has.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OutputTensor")]
pub(super) struct Output {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<usize>,
    /// `binary_data_size`, if its data is behind the JSON.
    #[serde(skip_serializing_if = "Map::is_empty")]
    parameters: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Data>,
}

impl Output {
    /// With its data in it, or at the end of `binary`.
    pub(super) fn new(
        name: &'static str,
        shape: Vec<usize>,
        data: Data,
        binary: Option<&mut Vec<u8>>,
    ) -> Self {
        let datatype = data.datatype();
        let mut parameters = Map::new();
        let data = match binary {
            None => Some(data),
            Some(binary) => {
                let start = binary.len();
                data.write(binary);
                parameters.insert("binary_data_size".to_owned(), (binary.len() - start).into());
                None
            }
        };
        Self { name, datatype, shape, parameters, data }
    }
}
