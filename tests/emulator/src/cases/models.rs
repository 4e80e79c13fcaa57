use std::{fs, path::Path};

use engine::{Batch, Engine, EngineError, Options, Pooling, Precision};
use engine_cpu::{CpuEngine, PackedModel};
use engine_gpu::{Device, DeviceError, GpuEngine, kernel::Dtype};

use super::Case;
use crate::fixtures::{distance, fixtures};

/// Token ids of texts as a tokenizer for uncased English makes them.
pub const TEXTS: [&[u32]; 4] = [
    &[101, 2204, 3185, 102],
    &[101, 2919, 3185, 102],
    &[101, 2023, 3185, 2003, 6429, 999, 102],
    &[101, 102],
];

#[must_use]
pub fn options(precision: Precision) -> Options {
    Options { num_threads: 1, precision: Some(precision), pooling: Some(Pooling::Mean) }
}

pub fn engine<D: Device>(
    device: D,
    packed: &PackedModel,
    precision: Precision,
) -> Result<GpuEngine<D>, EngineError> {
    GpuEngine::of_unpacked(device, &packed.unpacked(), &options(precision))
}

/// The graph of a bundled model.
#[must_use]
pub fn onnx_of(tests: &str, function: &str) -> Vec<u8> {
    let file = Path::new(tests).join("../functions").join(function).join("model/model.onnx");
    fs::read(file).expect("a bundled model")
}

/// Small models of every architecture and exporter give what they give in ONNX Runtime.
#[must_use]
pub fn architectures<D: Device>(tests: &str) -> Vec<Case<D>> {
    let is_linear = |packed: &PackedModel| packed.unpacked().graph.is_none();
    let fused = fixtures(tests).into_iter().filter(|(fixture, _)| fixture.fused);
    let packed = fused.map(|(fixture, onnx)| {
        (fixture, engine_cpu::pack(&onnx, Precision::F32).expect("it is packed on the CPU, too"))
    });
    let cases = packed.filter(|(_, packed)| is_linear(packed)).map(|(fixture, packed)| Case {
        name: fixture.file.clone(),
        dtype: Dtype::F16,
        check: Box::new(move |device| {
            let mut batch = Batch::new();
            fixture.cases.iter().for_each(|case| case.push(&mut batch));
            let output = engine(device, &packed, Precision::F32)?.forward(&batch)?;
            for (index, case) in fixture.cases.iter().enumerate() {
                let distance = distance(output.row(index), case.expected(Pooling::Mean));
                if distance.is_nan() || distance > 1e-2 {
                    return Err(format!("row {index} is off by {distance:.1e}").into());
                }
            }
            Ok(())
        }),
    });
    cases.collect()
}

/// One less the cosine of the angle between two rows.
fn angle(row: &[f32], expected: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    1.0 - dot(row, expected) / (dot(row, row) * dot(expected, expected)).sqrt()
}

/// A bundled model gives what it gives on the CPU, in every precision of its bundle.
#[must_use]
pub fn bundled<D: Device>(tests: &str, function: &str) -> Vec<Case<D>> {
    let limits = [
        (Precision::F32, 3e-3, 1e-5),
        (Precision::Bf16, 1e-2, 3e-5),
        (Precision::Int8, 3e-2, 3e-4),
    ];
    let cases = limits.into_iter().map(|(precision, max_distance, max_angle)| {
        let onnx = onnx_of(tests, function);
        let check = move |device| {
            let mut batch = Batch::new();
            TEXTS.iter().for_each(|input_ids| batch.push(input_ids));
            if precision == Precision::F32 {
                // More than a tile, and a block of attention.
                let input_ids: Vec<u32> = (0..130).map(|token| 2000 + token * 7 % 1000).collect();
                batch.push(&input_ids);
            }
            let mut exact = CpuEngine::from_onnx(&onnx, &options(Precision::F32))?;
            let expected = exact.forward(&batch)?;
            let packed = engine_cpu::pack(&onnx, precision)?;
            let output = engine(device, &packed, precision)?.forward(&batch)?;
            for index in 0..batch.batch_size() {
                let (row, expected) = (output.row(index), expected.row(index));
                let (distance, angle) = (distance(row, expected), angle(row, expected));
                let is_near = distance <= max_distance && angle <= max_angle;
                if !is_near {
                    let reason = format!("row {index} is off by {distance:.1e}, {angle:.1e}");
                    return Err(DeviceError::from(reason));
                }
            }
            Ok(())
        };
        let name = format!("{function} of a bundle in {precision}");
        Case { name, dtype: Dtype::F16, check: Box::new(check) }
    });
    cases.collect()
}
