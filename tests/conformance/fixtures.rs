//! Small models of every architecture and exporter, and what ONNX Runtime makes of them.
//!
//! `fixtures/make_fixtures.py` wrote the models and the expected values.
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, fs, path::Path};

use engine::{Batch, Pooling};
use serde::Deserialize;

#[derive(Deserialize)]
pub(crate) struct Fixture {
    pub(crate) file: String,
    /// Whether the kernels are to run the encoder.
    pub(crate) fused: bool,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    input_ids: Vec<u32>,
    token_type_ids: Option<Vec<u32>>,
    /// The outputs of the graph by name. Hidden states are there as the first token's and as their
    /// mean.
    #[serde(flatten)]
    outputs: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Expected {
    Row(Vec<f32>),
    HiddenStates { first: Vec<f32>, mean: Vec<f32> },
}

/// Outputs in the order in which graphs have them.
const OUTPUTS: [&str; 3] = ["logits", "last_hidden_state", "token_embeddings"];

impl Case {
    pub(crate) fn expected(&self, pooling: Pooling) -> &[f32] {
        let output = OUTPUTS.iter().find_map(|name| self.outputs.get(*name)).unwrap();
        match (output, pooling) {
            (Expected::Row(row), _) => row,
            (Expected::HiddenStates { mean, .. }, Pooling::Mean) => mean,
            (Expected::HiddenStates { first, .. }, Pooling::Cls) => first,
            (Expected::HiddenStates { .. }, other) => panic!("no case has {other}"),
        }
    }

    pub(crate) fn push(&self, batch: &mut Batch) {
        match &self.token_type_ids {
            Some(token_type_ids) => batch.push_segments(&self.input_ids, token_type_ids),
            None => batch.push(&self.input_ids),
        }
    }
}

/// All of them, in the folder `tests`.
pub(crate) fn fixtures(tests: &str) -> Vec<(Fixture, Vec<u8>)> {
    let folder = Path::new(tests).join("conformance/fixtures");
    let cases = fs::read(folder.join("cases.json")).unwrap();
    let fixtures: Vec<Fixture> = serde_json::from_slice(&cases).unwrap();
    fixtures
        .into_iter()
        .map(|fixture| {
            let onnx = fs::read(folder.join(&fixture.file)).unwrap();
            (fixture, onnx)
        })
        .collect()
}

/// Largest difference between two rows, relative to the larger of 1 and the largest number.
pub(crate) fn distance(row: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(row.len(), expected.len());
    let scale = expected.iter().fold(1.0_f32, |scale, value| scale.max(value.abs()));
    row.iter().zip(expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max)
}
