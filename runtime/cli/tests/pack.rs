//! `sanderling pack`, as it is called.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod command;

use std::{fs, path::Path};

use command::{Folder, MODEL, files, run, sanderling};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/conformance/fixtures");

/// Exit code, standard output and standard error of `sanderling pack`.
fn pack(arguments: &[&str]) -> (i32, String, String) {
    run(sanderling(&["pack"]).args(arguments))
}

#[test]
fn a_model_is_packed_once_and_says_what_it_lost() {
    let folder = Folder::new("pack-int8");
    let target = folder.join("int8");
    let (code, stdout, stderr) = pack(&[MODEL, &target, "--quantize", "int8"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.starts_with("same label: "), "{stdout}");
    assert!(stdout.contains("minilm-l6-h384-sst2 for int8, 23.3 MB"), "{stdout}");
    for (file, content) in files(&target) {
        let line = stdout.lines().find(|line| line.starts_with(&file)).unwrap();
        let bytes = content.len().to_string();
        assert!(line.split_whitespace().any(|word| word == bytes), "{line}");
    }
    assert!(stdout.contains("\nversion "), "{stdout}");
    assert_eq!(stderr, "");

    let (code, _, stderr) = pack(&[MODEL, &target]);
    assert_eq!(code, 1);
    assert!(stderr.starts_with(&format!("error: cannot write {target}: ")), "{stderr}");

    let (code, _, stderr) = pack(&[&target, &folder.join("again")]);
    assert_eq!(code, 1);
    assert!(stderr.contains("is packed already"), "{stderr}");
}

#[test]
fn a_model_that_loses_too_much_is_refused_unless_forced() {
    let folder = Folder::new("pack-strict");
    let target = folder.join("int8");
    let strict = [MODEL, &target, "--quantize", "int8", "--min-agreement", "1.01"];
    let (code, _, stderr) = pack(&strict);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("error: int8 loses too much: "), "{stderr}");
    assert!(!Path::new(&target).exists());

    let (code, stdout, stderr) = pack(&[&strict[..], &["--force"]].concat());
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("packed nevertheless: "), "{stdout}");
    assert!(Path::new(&target).is_dir());
}

#[test]
fn labelled_texts_give_an_accuracy_and_broken_ones_a_line() {
    let folder = Folder::new("pack-texts");
    let texts = folder.join("texts.tsv");
    fs::write(&texts, "label\ttext\n1\ta wonderful film\n0\ta dreadful bore\n").unwrap();
    let target = folder.join("bf16");
    let (code, stdout, stderr) =
        pack(&[MODEL, &target, "--quantize", "bf16", "--calibration", &texts]);
    assert_eq!(code, 0, "{stderr}");
    let report = "same label: 2 of 2 texts, 100.00%; accuracy 100.00% exact, 100.00% packed";
    assert!(stdout.starts_with(report), "{stdout}");

    for (content, reason) in
        [("label\ttext\nyes\tfine\n", "line 2: no label and text"), ("label\ttext\n", "no texts")]
    {
        fs::write(&texts, content).unwrap();
        let target = folder.join("other");
        let (code, _, stderr) =
            pack(&[MODEL, &target, "--quantize", "bf16", "--calibration", &texts]);
        assert_eq!((code, stderr), (1, format!("error: {texts}: {reason}\n")));
    }
}

#[test]
fn what_the_kernels_do_not_know_is_refused_with_the_reason() {
    let folder = Folder::new("pack-unknown");
    let fixture = Path::new(FIXTURES).join("deberta-torchscript-17.onnx");
    fs::copy(fixture, folder.join("model.onnx")).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(Path::new(MODEL).join(file), folder.join(file)).unwrap();
    }
    let (code, _, stderr) = pack(&[folder.path().to_str().unwrap(), &folder.join("packed")]);
    assert_eq!(code, 1);
    assert!(stderr.starts_with("error: unsupported model: "), "{stderr}");
}

#[test]
fn equal_models_give_equal_bytes() {
    let folder = Folder::new("pack-equal");
    let texts = folder.join("texts.txt");
    fs::write(&texts, "a wonderful film\n").unwrap();
    for [first, second] in [["int8", "int8"], ["f32", "none"]] {
        let targets = ["first", "second"].map(|name| folder.join(&format!("{name}-{second}")));
        for (target, precision) in targets.iter().zip([first, second]) {
            let (code, _, stderr) =
                pack(&[MODEL, target, "--quantize", precision, "--calibration", &texts]);
            assert_eq!(code, 0, "{stderr}");
        }
        let [first, second] = targets.map(files);
        let names = first.iter().map(|(name, _)| &**name).collect::<Vec<_>>();
        assert_eq!(names, ["manifest.json", "tokenizer.json", "weights.bin"]);
        assert!(first == second);
    }
}

#[test]
fn a_graph_is_packed_with_the_files_around_it() {
    let folder = Folder::new("pack-graph");
    fs::create_dir(folder.join("onnx")).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        fs::copy(Path::new(MODEL).join(file), folder.join(file)).unwrap();
    }
    let graphs = ["exported.onnx", "onnx/other.onnx"].map(|name| folder.join(name));
    for (index, graph) in graphs.iter().enumerate() {
        fs::copy(Path::new(MODEL).join("model.onnx"), graph).unwrap();
        let target = folder.join(&index.to_string());
        let (code, _, stderr) = pack(&[graph, &target]);
        assert_eq!(code, 0, "{stderr}");
        assert!(Path::new(&target).join("weights.bin").is_file());
    }

    let lone = folder.join("lone.onnx");
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let (code, _, stderr) = pack(&[&lone, &folder.join("none")]);
    assert_eq!(code, 1, "{stderr}");
}
