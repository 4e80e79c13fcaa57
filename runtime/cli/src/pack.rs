//! `sanderling pack`: an exported model as the engine reads it, if it still answers as it did.

use std::{ffi::OsString, io::Write, path::PathBuf};

use engine::{Options, Precision, UnknownPrecision};
use engine_cpu::CpuEngine;
use weights::{Access, Bundle};

use crate::{
    calibration::{Agreement, Answers, Calibration},
    error::CliError,
    inspect,
    progress::Bar,
};

/// Most that is kept of models that are fetched, in bytes.
const MAX_CACHE_BYTES: u64 = 10 << 30;

/// Packs an exported model, so that a function maps it instead of reading it.
///
/// FOLDER is made, and is a MODEL_URI; equal models give equal bytes. In lower precision, the packed
/// model first answers the calibration texts beside the exported one, and is refused if it loses
/// more than it may.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The exported model: a folder with model.onnx, tokenizer.json and config.json, an .onnx file
    /// in such a folder, or s3://…, https://… or hf://…
    model: String,
    /// Folder to make
    folder: PathBuf,
    /// What linear layers are computed in: f32 (or none), bf16 or int8
    #[arg(long, default_value = Precision::F32.as_str(), value_parser = precision)]
    quantize: Precision,
    /// Texts to compare answers on, one a line; a .tsv file has a header and the columns label
    /// (a number) and text. Default: a hundred sentences that come with this command
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Least share of texts that keep their label: of a hundred texts, one or two are so near the
    /// middle that another CPU decides otherwise
    #[arg(long, default_value_t = 0.98)]
    min_agreement: f64,
    /// Most accuracy that may be lost on labelled texts, in percentage points
    #[arg(long, default_value_t = 0.5)]
    max_accuracy_loss: f64,
    /// Least mean cosine between embeddings
    #[arg(long, default_value_t = 0.99)]
    min_cosine: f64,
    /// Write the model even if it loses more
    #[arg(long)]
    force: bool,
    /// Where a model that lies elsewhere is kept [default: sanderling in the temporary folder]
    #[arg(long, env = "CACHE_DIR")]
    cache_dir: Option<OsString>,
}

/// Packs as `arguments` say, and writes what was lost and what was made to `report`.
pub(crate) fn run(
    arguments: &Arguments,
    access: &Access,
    report: &mut impl Write,
) -> Result<(), CliError> {
    let bar = Bar::new();
    bar.stage("reading");
    let cache_dir = arguments.cache_dir.as_ref().filter(|path| !path.is_empty());
    let options = weights::Options {
        cache_dir: cache_dir.map_or_else(|| std::env::temp_dir().join("sanderling"), PathBuf::from),
        max_cache_bytes: MAX_CACHE_BYTES,
        access: access.clone(),
    };
    let bundle = Bundle::open(&arguments.model, &options)?;
    let graph = bundle.graph()?.ok_or_else(|| CliError::Packed(arguments.model.clone()))?;
    let onnx = graph.as_ref();
    bar.stage("packing");
    let precision = arguments.quantize;
    let packed = engine_cpu::pack(onnx, precision)?;
    if precision != Precision::F32 {
        bar.stage("comparing");
        let agreement = compare(arguments, &bundle, onnx)?;
        bar.clear();
        writeln!(report, "{agreement}")?;
        if let Some(loss) = loss(arguments, &agreement) {
            if !arguments.force {
                return Err(CliError::Loss { precision, loss });
            }
            writeln!(report, "packed nevertheless: {loss}")?;
        }
    }
    bar.stage("writing");
    bundle.write(&arguments.folder, precision.as_str(), &packed.unpacked())?;
    bar.clear();
    let megabytes = packed.unpacked().weights.len() as f64 / 1e6;
    let folder = arguments.folder.display().to_string();
    writeln!(report, "{folder}: {} for {precision}, {megabytes:.1} MB", bundle.name())?;
    let made = weights::inspect(&folder, false, access, &|_| ())?;
    writeln!(report, "version {}", made.sha256.unwrap_or_default())?;
    inspect::files(&made.files, report)?;
    Ok(())
}

/// Answers of the packed model beside those of the exported one.
fn compare(arguments: &Arguments, bundle: &Bundle, onnx: &[u8]) -> Result<Agreement, CliError> {
    let calibration = match &arguments.calibration {
        Some(path) => Calibration::read(path)?,
        None => Calibration::bundled(),
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let answers = |precision| {
        let options = Options { num_threads, precision: Some(precision), ..Options::default() };
        Answers::of(&mut CpuEngine::from_onnx(onnx, &options)?, bundle, &calibration)
    };
    let (exact, packed) = (answers(Precision::F32)?, answers(arguments.quantize)?);
    Ok(Agreement::between(&exact, &packed, bundle, &calibration))
}

/// `none` is what other tools call it.
fn precision(word: &str) -> Result<Precision, UnknownPrecision> {
    if word == "none" { Ok(Precision::F32) } else { word.parse() }
}

/// What is beyond the limits, if anything is.
fn loss(arguments: &Arguments, agreement: &Agreement) -> Option<String> {
    match *agreement {
        Agreement::Labels { num_texts, num_equal, accuracy } => {
            let share = num_equal as f64 / num_texts as f64;
            let least = arguments.min_agreement;
            if share < least {
                return Some(format!("{:.2}% of labels, not {:.2}%", 100.0 * share, 100.0 * least));
            }
            let lost = accuracy.map(|[exact, packed]| 100.0 * (exact - packed))?;
            let most = arguments.max_accuracy_loss;
            (lost > most).then(|| format!("{lost:.2} points of accuracy, not {most:.2}"))
        }
        Agreement::Embeddings { mean_cosine, .. } => {
            let least = arguments.min_cosine;
            // Not a number is not enough either.
            let enough = mean_cosine >= least;
            (!enough).then(|| format!("a mean cosine of {mean_cosine:.4}, not {least:.4}"))
        }
    }
}
