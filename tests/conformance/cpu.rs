//! The CPU engine against ONNX Runtime on the same file: token ids and logits of every case.
//!
//! `make_cases.py` wrote the expected values.
#![allow(clippy::panic, clippy::print_stderr, clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use engine::{Batch, Engine, Options, Precision};
use engine_cpu::CpuEngine;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokenizers::{Tokenizer, TruncationParams};
use weights::Bundle;

#[derive(Deserialize)]
struct Cases {
    model_sha256: String,
    /// Largest difference of a logit, absolute: two orders of summation in f32.
    tolerance: f32,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    num_tokens: usize,
    input_ids_sha256: String,
    logits: Vec<f32>,
}

const MAX_POSITIONS: usize = 512;

const TWO_THREADS: Options = Options { num_threads: 2, precision: None, pooling: None };

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn read(path: &str) -> Vec<u8> {
    fs::read(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The cases, the token ids of each, and the bundled model.
fn load() -> (Cases, Vec<Vec<u32>>, CpuEngine) {
    let cases: Cases =
        serde_json::from_slice(&read("tests/conformance/cases/predict.json")).unwrap();
    let onnx = read("functions/predict/model/model.onnx");
    assert_eq!(sha256(&onnx), cases.model_sha256, "run make_cases.py for the new model");

    let mut tokenizer =
        Tokenizer::from_bytes(read("functions/predict/model/tokenizer.json")).unwrap();
    let truncation = TruncationParams { max_length: MAX_POSITIONS, ..Default::default() };
    tokenizer.with_padding(None).with_truncation(Some(truncation)).unwrap();
    let input_ids = cases
        .cases
        .iter()
        .map(|case| tokenizer.encode(case.text.as_str(), true).unwrap().get_ids().to_vec());
    let input_ids = input_ids.collect();
    (cases, input_ids, CpuEngine::from_onnx(&onnx, &TWO_THREADS).unwrap())
}

/// Largest difference between a row and what is expected of it.
fn distance(row: &[f32], case: &Case) -> f32 {
    assert_eq!(row.len(), case.logits.len());
    row.iter().zip(&case.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn logits_agree_with_onnx_runtime_alone_and_in_a_batch() {
    let (expected, input_ids, mut engine) = load();
    assert_eq!(expected.cases.len(), 200);

    let mut worst = 0.0_f32;
    let mut alone = Vec::new();
    for (case, input_ids) in expected.cases.iter().zip(&input_ids) {
        let ids: Vec<u8> = input_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        assert_eq!(input_ids.len(), case.num_tokens, "{:?}", case.text);
        assert_eq!(sha256(&ids), case.input_ids_sha256, "{:?}", case.text);

        let mut batch = Batch::new();
        batch.push(input_ids);
        let output = engine.forward(&batch).unwrap();
        let distance = distance(output.row(0), case);
        assert!(distance <= expected.tolerance, "off by {distance}: {:?}", case.text);
        worst = worst.max(distance);
        alone.push(output.row(0).to_vec());
    }
    eprintln!("largest difference from ONNX Runtime: {worst:e}");

    // The file goes from short to long, so a stride makes batches of all lengths.
    let num_batches = input_ids.len() / 8;
    for first in 0..num_batches {
        let mut batch = Batch::new();
        let members = (first..input_ids.len()).step_by(num_batches);
        members.clone().for_each(|index| batch.push(&input_ids[index]));
        let output = engine.forward(&batch).unwrap();
        for (row, index) in members.enumerate() {
            assert_eq!(output.row(row), alone[index], "a neighbour changed an answer");
        }
    }
}

#[test]
fn every_length_up_to_the_models_runs() {
    let (_, _, mut engine) = load();
    let (start, end, word) = (101, 102, 2204);
    for num_words in [0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 63, 64, 65, 127, 255, 509, 510] {
        let mut input_ids = vec![start];
        input_ids.extend(std::iter::repeat_n(word, num_words));
        input_ids.push(end);
        let mut batch = Batch::new();
        batch.push(&input_ids);
        let output = engine.forward(&batch).unwrap();
        assert!(output.row(0).iter().all(|logit| logit.is_finite()), "{num_words} words");
    }
}

#[test]
fn a_batch_of_nothing_gives_nothing() {
    let (_, _, mut engine) = load();
    assert_eq!(engine.forward(&Batch::new()).unwrap().batch_size(), 0);
}

#[test]
fn a_sequence_that_the_model_cannot_hold_is_an_error() {
    let (_, _, mut engine) = load();
    let mut batch = Batch::new();
    batch.push(&[101; MAX_POSITIONS + 1]);
    let error = engine.forward(&batch).unwrap_err();
    assert_eq!(error.to_string(), "513 tokens need position 512 of 512");
}

#[test]
fn a_kept_model_and_a_packed_one_answer_like_the_export() {
    let folder = std::env::temp_dir().join(format!("sanderling-kept-{}", std::process::id()));
    let export = repository("functions/predict/model");
    let options = Options { precision: Some(Precision::Int8), ..TWO_THREADS };
    let mut batch = Batch::new();
    batch.push(&[101, 2204, 3185, 102]);
    let answer = |bundle: &Bundle| {
        let mut engine = CpuEngine::load(bundle, &options).unwrap();
        assert!(engine.is_fused());
        engine.forward(&batch).unwrap()
    };

    let open_with = |uri: &Path, cache_dir: PathBuf| {
        let access = weights::Access::default();
        let options = weights::Options { cache_dir, max_cache_bytes: 1 << 30, access };
        Bundle::open(uri.to_str().unwrap(), &options).unwrap()
    };
    let open = |uri: &Path| open_with(uri, folder.join("cache"));
    let bundle = open(&export);
    let first = answer(&bundle);
    assert!(bundle.packed("int8").unwrap().is_some(), "it was kept");
    assert_eq!(answer(&open(&export)), first);

    // One that was tampered with is packed again.
    let mut files = fs::read_dir(folder.join("cache")).unwrap().map(|file| file.unwrap().path());
    let kept = files.find(|path| path.is_dir()).unwrap();
    let manifest = fs::read_to_string(kept.join("manifest.json")).unwrap();
    let damaged = manifest.replace(r#""num_heads":12"#, r#""num_heads":13"#);
    assert_ne!(damaged, manifest);
    fs::write(kept.join("manifest.json"), damaged).unwrap();
    assert_eq!(answer(&open(&export)), first);
    assert_eq!(fs::read_to_string(kept.join("manifest.json")).unwrap(), manifest);

    let graph = bundle.graph().unwrap().unwrap();
    let packed = engine_cpu::pack(graph.as_ref(), Precision::Int8).unwrap();
    bundle.write(&folder.join("packed"), "int8", &packed.unpacked()).unwrap();
    let bundle = open(&folder.join("packed"));
    assert_eq!(answer(&bundle), first);
    let exact = Options { precision: Some(Precision::F32), ..options };
    let error = CpuEngine::load(&bundle, &exact).unwrap_err().to_string();
    assert!(error.contains("the model is packed for int8"), "{error}");

    // A cache that takes nothing costs a warning.
    let nowhere = open_with(&export, "/proc/nowhere".into());
    assert_eq!(answer(&nowhere), first);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn what_is_not_a_model_is_refused() {
    for bytes in
        [&b""[..], b"not a protobuf", &read("functions/predict/model/model.onnx")[..1 << 20]]
    {
        assert!(CpuEngine::from_onnx(bytes, &TWO_THREADS).is_err(), "{} bytes", bytes.len());
    }
}
