//! `sanderling pack`: an exported model as the engine reads it, if it still answers as it did.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use engine::{EngineError, Precision};
use engine_cpu::{CpuEngine, Options};
use weights::{Bundle, WeightsError};

use crate::calibration::{Agreement, Answers, Calibration};

/// Packs an exported model, so that a function maps it instead of reading it.
///
/// MODEL is a folder with `model.onnx`, `tokenizer.json` and `config.json`; FOLDER is made, and is a
/// MODEL_URI. In lower precision, the packed model first answers the calibration texts beside the
/// exported one, and is refused if it loses more than it may.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Folder of the exported model
    model: String,
    /// Folder to make
    folder: PathBuf,
    /// What linear layers are computed in: f32, bf16 or int8
    #[arg(long, default_value_t = Precision::F32)]
    quantize: Precision,
    /// Texts to compare answers on, one a line; a .tsv file has a header and the columns label
    /// (a number) and text. Default: a hundred sentences that come with this command
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Least share of texts that keep their label
    #[arg(long, default_value_t = 0.99)]
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
}

/// Why there is no packed model.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PackError {
    /// The exported model cannot be read, or the packed one not be written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The engine cannot pack or run it.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// It is packed already.
    #[error("{0} is packed already: pack the export it was made of")]
    Packed(String),
    /// There is nothing to compare.
    #[error("{}: {reason}", path.display())]
    Calibration { path: PathBuf, reason: String },
    /// A text cannot be tokenized.
    #[error("tokenizer.json")]
    Tokenizer(#[source] tokenizers::Error),
    /// It answers otherwise than the exported model.
    #[error("{precision} loses too much: {loss}; --force packs it nevertheless")]
    Loss { precision: Precision, loss: String },
    /// The report cannot be written.
    #[error("standard output")]
    Report(#[from] std::io::Error),
}

/// Packs as `arguments` say, and writes what was lost to `report`.
pub(crate) fn run(arguments: &Arguments, report: &mut impl Write) -> Result<(), PackError> {
    // Nothing is kept of what is only compared.
    let bundle = Bundle::open(&arguments.model, Path::new(""))?;
    let onnx = bundle.graph().ok_or_else(|| PackError::Packed(arguments.model.clone()))?;
    let precision = arguments.quantize;
    let packed = engine_cpu::pack(onnx, precision)?;
    if precision != Precision::F32 {
        let agreement = compare(arguments, &bundle, onnx)?;
        writeln!(report, "{agreement}")?;
        if let Some(loss) = loss(arguments, &agreement) {
            if !arguments.force {
                return Err(PackError::Loss { precision, loss });
            }
            writeln!(report, "packed nevertheless: {loss}")?;
        }
    }
    bundle.write(&arguments.folder, precision.as_str(), packed.unpacked())?;
    let megabytes = packed.unpacked().weights.len() as f64 / 1e6;
    let folder = arguments.folder.display();
    writeln!(report, "{folder}: {} for {precision}, {megabytes:.1} MB", bundle.name())?;
    Ok(())
}

/// Answers of the packed model beside those of the exported one.
fn compare(arguments: &Arguments, bundle: &Bundle, onnx: &[u8]) -> Result<Agreement, PackError> {
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
