//! The bundled model as bundles, and what they must answer.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use engine::{Batch, Engine, Options, Precision};
use engine_cpu::CpuEngine;
use weights::Bundle;

use crate::{function::Running, stored::Folder};

pub(crate) const EXPORT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model");

pub(crate) const WEIGHTS: &str = "weights.bin";

/// Texts and their token ids.
const TEXTS: [(&str, &[u32]); 2] =
    [("good movie", &[101, 2204, 3185, 102]), ("bad movie", &[101, 2919, 3185, 102])];

/// Largest difference of a score.
const TOLERANCE: f64 = 1e-5;

/// A bundle.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    files: Vec<(String, Vec<u8>)>,
    pub(crate) sha256: String,
    answers: Vec<(&'static str, String, f64)>,
}

/// The model in 8 bits.
pub(crate) fn int8() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::pack(Precision::Int8))
}

/// The same model in 16 bits.
pub(crate) fn bf16() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(|| Model::pack(Precision::Bf16))
}

fn open(folder: &Path) -> Bundle {
    let options = weights::Options {
        cache_dir: "/proc/nowhere".into(),
        max_cache_bytes: 0,
        access: weights::Access::default(),
    };
    Bundle::open(folder.to_str().unwrap(), &options).unwrap()
}

impl Model {
    fn pack(precision: Precision) -> Self {
        let folder = Folder::new(&format!("pack-{}", precision.as_str()));
        let path = folder.path().join("packed");
        let export = open(Path::new(EXPORT));
        let packed = engine_cpu::pack(export.graph().unwrap().unwrap().as_ref(), precision);
        export.write(&path, precision.as_str(), &packed.unwrap().unpacked()).unwrap();

        let bundle = open(&path);
        let mut engine = CpuEngine::load(&bundle, &Options::default()).unwrap();
        let answers = TEXTS.map(|(text, input_ids)| {
            let mut batch = Batch::new();
            batch.push(input_ids);
            let output = engine.forward(&batch).unwrap();
            let [negative, positive] = *output.row(0) else { panic!("two labels") };
            let score = |gap: f32| 1.0 / (1.0 + f64::from(gap).exp());
            let id = usize::from(positive > negative);
            (text, bundle.labels()[id].clone(), score(-(positive - negative).abs()))
        });
        let [(_, first, _), (_, second, _)] = &answers;
        assert_eq!((&**first, &**second), ("POSITIVE", "NEGATIVE"));
        let files = fs::read_dir(&path).unwrap().map(|file| {
            let file = file.unwrap();
            (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())
        });
        Self { files: files.collect(), sha256: bundle.sha256().to_owned(), answers: answers.into() }
    }

    /// The same weights by another name, and so another version.
    pub(crate) fn renamed(&self, name: &str) -> Self {
        let mut files = self.files.clone();
        let (_, manifest) = files.iter_mut().find(|(file, _)| file == "manifest.json").unwrap();
        let old = String::from_utf8(manifest.clone()).unwrap();
        let new = old.replacen("minilm-l6-h384-sst2", name, 1);
        assert_ne!(new, old);
        *manifest = new.into_bytes();
        let folder = Folder::new(name);
        let renamed = Self { files, ..self.clone() };
        let path = renamed.put(&folder.path().join("bundle"));
        Self { sha256: open(&path).sha256().to_owned(), ..renamed }
    }

    /// Writes the bundle into `folder`, which it makes.
    pub(crate) fn put(&self, folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        for (name, content) in &self.files {
            fs::write(folder.join(name), content).unwrap();
        }
        folder.to_owned()
    }

    pub(crate) fn file(&self, name: &str) -> &[u8] {
        &self.files.iter().find(|(file, _)| file == name).unwrap().1
    }

    pub(crate) fn weights_bytes(&self) -> u64 {
        self.file(WEIGHTS).len() as u64
    }

    /// Asserts that `folder` has this bundle, byte for byte.
    pub(crate) fn must_be_in(&self, folder: &Path) {
        for (name, content) in &self.files {
            assert!(fs::read(folder.join(name)).unwrap() == *content, "{name} is another");
        }
    }

    /// As `/health` names it.
    pub(crate) fn version(&self) -> &str {
        &self.sha256[..12]
    }

    /// Asserts that `function` gives what this model gives.
    pub(crate) fn must_answer(&self, function: &Running) {
        for (text, ..) in &self.answers {
            let answer = function.predict(text);
            assert!(answer.status == 200 && self.gives(text, &answer.body), "{text}: {answer:?}");
        }
    }

    /// Whether `body` is what this model gives for `text`.
    pub(crate) fn gives(&self, text: &str, body: &serde_json::Value) -> bool {
        let (_, label, score) = self.answers.iter().find(|(known, ..)| *known == text).unwrap();
        let given = body[0]["score"].as_f64().unwrap_or(f64::NAN);
        body[0]["label"] == **label && (given - score).abs() <= TOLERANCE
    }
}
