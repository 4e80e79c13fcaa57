//! What the GPU engine does besides computing. That it computes what ONNX Runtime and the CPU engine do,
//! `gpu-check` shows, by an emulated driver.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, path::PathBuf, thread};

use emulator::{
    Emulated,
    cases::{self, TEXTS, onnx_of, options},
};
use engine::{Batch, Engine, Options, Precision};
use engine_gpu::GpuEngine;
use weights::{Bundle, Unpacked};

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The bundled classifier, as `precision` packs it.
fn classifier(precision: Precision) -> GpuEngine<Emulated> {
    let packed = engine_cpu::pack(&onnx_of(TESTS, "predict"), precision).unwrap();
    cases::engine(Emulated::default(), &packed, precision).unwrap()
}

fn batch(input_ids: &[u32]) -> Batch {
    let mut batch = Batch::new();
    batch.push(input_ids);
    batch
}

#[test]
fn gpu_check_has_every_architecture() {
    let cases = cases::architectures::<Emulated>(TESTS);
    assert!(cases.len() >= 30, "{}", cases.len());
}

#[test]
fn without_kernels_of_sm90_it_gives_the_same() {
    let case = &cases::bundled(TESTS, "predict")[0];
    let outcome = (case.check)(Emulated::old()).map_err(|error| error.to_string());
    assert_eq!(outcome, Ok(()), "{}", case.name);
}

#[test]
fn engines_of_a_model_run_beside_each_other() {
    let mut engine = classifier(Precision::F32);
    let expected = TEXTS.map(|text| engine.forward(&batch(text)).unwrap());
    let mut another = engine.another().unwrap();
    let beside = thread::spawn(move || {
        let outputs = TEXTS.map(|text| another.forward(&batch(text)).unwrap());
        (outputs, another)
    });
    assert_eq!(TEXTS.map(|text| engine.forward(&batch(text)).unwrap()), expected);
    drop(engine);
    let (outputs, mut another) = beside.join().unwrap();
    assert_eq!(outputs, expected);
    assert_eq!(another.forward(&batch(TEXTS[0])).unwrap(), expected[0]);
}

#[test]
fn what_f16_has_no_room_for_is_run_in_bf16() {
    let packed = engine_cpu::pack(&onnx_of(TESTS, "predict"), Precision::F32).unwrap();
    let model = packed.unpacked();
    let is_bias = |name: &str| name == "layers.0.intermediate.bias";
    let bias = model.tensors.iter().find(|tensor| is_bias(&tensor.name)).unwrap();
    let mut weights = model.weights.to_vec();
    weights[bias.offset..][..4].copy_from_slice(&1e6_f32.to_le_bytes());
    let model = Unpacked { weights: &weights, ..model };
    let options = options(Precision::F32);
    let mut engine = GpuEngine::of_unpacked(Emulated::default(), &model, &options).unwrap();
    let mut another = engine.another().unwrap();
    let first = engine.forward(&batch(TEXTS[0])).unwrap();
    assert!(first.row(0).iter().all(|logit| logit.is_finite()), "{:?}", first.row(0));
    assert_eq!(engine.forward(&batch(TEXTS[0])).unwrap(), first);
    // The other one goes along, and the weights before are gone.
    assert_eq!(another.forward(&batch(TEXTS[0])).unwrap(), first);
}

#[test]
fn a_packed_bundle_runs_and_an_export_is_refused() {
    let folder = std::env::temp_dir().join(format!("sanderling-gpu-{}", std::process::id()));
    let open = |path: PathBuf| {
        let options = weights::Options {
            cache_dir: "/proc/nowhere".into(),
            max_cache_bytes: 0,
            access: weights::Access::default(),
        };
        Bundle::open(path.to_str().unwrap(), &options).unwrap()
    };
    let load =
        |bundle: &Bundle| GpuEngine::load_on(Emulated::default(), bundle, &Options::default());
    let export = open(PathBuf::from(TESTS).join("../functions/predict/model"));
    let reason = load(&export).unwrap_err().to_string();
    assert!(reason.contains("`sanderling pack`"), "{reason}");

    let packed = engine_cpu::pack(&onnx_of(TESTS, "predict"), Precision::Int8).unwrap();
    export.write(&folder, "int8", &packed.unpacked()).unwrap();
    let output = load(&open(folder.clone())).unwrap().forward(&batch(TEXTS[1])).unwrap();
    let expected = classifier(Precision::Int8).forward(&batch(TEXTS[1])).unwrap();
    assert_eq!(output, expected);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_the_model_has_no_row_for_is_refused_and_it_goes_on() {
    let mut engine = classifier(Precision::Int8);
    let reason = engine.forward(&batch(&[101, 40_000, 102])).unwrap_err().to_string();
    assert!(reason.contains("token id 40000"), "{reason}");
    assert!(engine.forward(&batch(TEXTS[0])).is_ok());
    assert_eq!(engine.forward(&Batch::new()).unwrap().batch_size(), 0);
}
