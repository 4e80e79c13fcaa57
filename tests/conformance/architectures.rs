//! The CPU engine against ONNX Runtime on small models of every architecture and exporter, in every
//! precision.
//!
//! `fixtures/make_fixtures.py` wrote the models and the expected values.
#![allow(clippy::panic, clippy::print_stderr, clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use engine::{Batch, Engine, Options, Pooling, Precision};
use engine_cpu::CpuEngine;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    file: String,
    /// Whether the kernels are to run the encoder.
    fused: bool,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
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
    fn expected(&self, pooling: Pooling) -> &[f32] {
        let output = OUTPUTS.iter().find_map(|name| self.outputs.get(*name)).unwrap();
        match (output, pooling) {
            (Expected::Row(row), _) => row,
            (Expected::HiddenStates { mean, .. }, Pooling::Mean) => mean,
            (Expected::HiddenStates { first, .. }, Pooling::Cls) => first,
            (Expected::HiddenStates { .. }, other) => panic!("no case has {other}"),
        }
    }

    fn push(&self, batch: &mut Batch) {
        match &self.token_type_ids {
            Some(token_type_ids) => batch.push_segments(&self.input_ids, token_type_ids),
            None => batch.push(&self.input_ids),
        }
    }
}

fn fixtures() -> Vec<(Fixture, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conformance/fixtures");
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

fn engine(onnx: &[u8], precision: Precision, num_threads: usize, pooling: Pooling) -> CpuEngine {
    let options = Options { num_threads, precision: Some(precision), pooling: Some(pooling) };
    CpuEngine::from_onnx(onnx, &options).unwrap()
}

/// Largest difference between two rows, relative to the larger of 1 and the largest number.
fn distance(row: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(row.len(), expected.len());
    let scale = expected.iter().fold(1.0_f32, |scale, value| scale.max(value.abs()));
    row.iter().zip(expected).map(|(a, b)| (a - b).abs() / scale).fold(0.0, f32::max)
}

/// Runs every case alone, and gives the largest distance from what is expected.
fn worst(engine: &mut CpuEngine, fixture: &Fixture, pooling: Pooling) -> f32 {
    let distances = fixture.cases.iter().map(|case| {
        let mut batch = Batch::new();
        case.push(&mut batch);
        let output = engine.forward(&batch).unwrap();
        distance(output.row(0), case.expected(pooling))
    });
    distances.fold(0.0, f32::max)
}

#[test]
fn every_architecture_and_exporter_agrees_in_f32() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 40, "{}", fixtures.len());
    for (fixture, onnx) in &fixtures {
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let mut engine = engine(onnx, Precision::F32, 1, pooling);
            assert_eq!(engine.is_fused(), fixture.fused, "{}", fixture.file);
            let worst = worst(&mut engine, fixture, pooling);
            eprintln!("{worst:.1e} {}", fixture.file);
            // Sums of f32 in another order.
            assert!(worst <= 1e-4, "{} is off by {worst}", fixture.file);
        }
    }
}

#[test]
fn lower_precision_stays_near() {
    for (fixture, onnx) in fixtures().iter().filter(|(fixture, _)| fixture.fused) {
        // These models are narrow and random, which is the worst case for rounding: a trained one
        // averages over hundreds of channels.
        for (precision, tolerance) in [(Precision::Bf16, 0.05), (Precision::Int8, 0.15)] {
            let mut engine = engine(onnx, precision, 1, Pooling::Mean);
            let worst = worst(&mut engine, fixture, Pooling::Mean);
            eprintln!("{worst:.1e} {precision} {}", fixture.file);
            assert!(worst <= tolerance, "{} in {precision} is off by {worst}", fixture.file);
        }
    }
}

#[test]
fn neighbours_and_threads_change_no_bit() {
    for (fixture, onnx) in fixtures() {
        for precision in Precision::ALL {
            let mut alone = engine(&onnx, precision, 1, Pooling::Mean);
            let rows: Vec<Vec<f32>> = fixture
                .cases
                .iter()
                .map(|case| {
                    let mut batch = Batch::new();
                    case.push(&mut batch);
                    alone.forward(&batch).unwrap().row(0).to_vec()
                })
                .collect();
            for num_threads in [1, 2, 5] {
                let mut engine = engine(&onnx, precision, num_threads, Pooling::Mean);
                for batch_size in [1, 3, 64] {
                    let mut batch = Batch::new();
                    let members: Vec<usize> =
                        (0..batch_size).map(|index| index * 7 % rows.len()).collect();
                    members.iter().for_each(|&index| fixture.cases[index].push(&mut batch));
                    let output = engine.forward(&batch).unwrap();
                    for (row, index) in members.into_iter().enumerate() {
                        assert_eq!(output.row(row), rows[index], "{} {precision}", fixture.file);
                    }
                }
            }
        }
    }
}
