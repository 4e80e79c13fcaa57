//! The CPU engine against ONNX Runtime on small models of every architecture and exporter, in every
//! precision.
#![allow(clippy::print_stderr, clippy::unwrap_used, reason = "helpers of tests")]

mod fixtures;

use engine::{Batch, Engine, Options, Pooling, Precision};
use engine_cpu::CpuEngine;
use fixtures::{Fixture, distance, fixtures};

const TESTS: &str = env!("CARGO_MANIFEST_DIR");

fn engine(onnx: &[u8], precision: Precision, num_threads: usize, pooling: Pooling) -> CpuEngine {
    let options = Options { num_threads, precision: Some(precision), pooling: Some(pooling) };
    CpuEngine::from_onnx(onnx, &options).unwrap()
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
    let fixtures = fixtures(TESTS);
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
    for (fixture, onnx) in fixtures(TESTS).iter().filter(|(fixture, _)| fixture.fused) {
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
    for (fixture, onnx) in fixtures(TESTS) {
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
