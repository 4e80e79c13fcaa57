//! What a packed model is measured on, and how near its answers are.

use std::{fmt, fs, path::Path};

use engine::{Batch, Engine};
use tokenizers::{Tokenizer, TruncationParams};
use weights::Bundle;

use crate::error::CliError;

/// Texts in one forward pass.
const BATCH_SIZE: usize = 32;

/// Texts, and the label of each if it is known.
#[derive(Debug)]
pub(crate) struct Calibration {
    texts: Vec<String>,
    labels: Option<Vec<usize>>,
}

impl Calibration {
    /// The sentences that come with this command.
    pub(crate) fn bundled() -> Self {
        let texts = include_str!("calibration.txt").lines().map(str::to_owned).collect();
        Self { texts, labels: None }
    }

    /// Reads a text a line, or, from a `.tsv` file, a label and a text.
    pub(crate) fn read(path: &Path) -> Result<Self, CliError> {
        let refuse = |reason: String| CliError::Calibration { path: path.to_owned(), reason };
        let content = fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
        let lines = content.lines().filter(|line| !line.trim().is_empty());
        let calibration = if path.extension().is_some_and(|extension| extension == "tsv") {
            let rows = lines.enumerate().skip(1).map(|(index, line)| {
                let row = line.split_once('\t');
                let row =
                    row.and_then(|(label, text)| Some((label.parse().ok()?, text.to_owned())));
                row.ok_or_else(|| refuse(format!("line {}: no label and text", index + 1)))
            });
            let rows: Vec<(usize, String)> = rows.collect::<Result<_, _>>()?;
            let (labels, texts) = rows.into_iter().unzip();
            Self { texts, labels: Some(labels) }
        } else {
            Self { texts: lines.map(str::to_owned).collect(), labels: None }
        };
        if calibration.texts.is_empty() {
            return Err(refuse("no texts".to_owned()));
        }
        Ok(calibration)
    }
}

/// The row that an engine gives each text.
#[derive(Debug)]
pub(crate) struct Answers(Vec<Vec<f32>>);

impl Answers {
    pub(crate) fn of(
        engine: &mut impl Engine,
        bundle: &Bundle,
        calibration: &Calibration,
    ) -> Result<Self, CliError> {
        let mut tokenizer =
            Tokenizer::from_bytes(bundle.tokenizer()).map_err(CliError::Tokenizer)?;
        let truncation =
            TruncationParams { max_length: bundle.max_position_embeddings(), ..Default::default() };
        tokenizer
            .with_padding(None)
            .with_truncation(Some(truncation))
            .map_err(CliError::Tokenizer)?;
        let mut rows = Vec::with_capacity(calibration.texts.len());
        for texts in calibration.texts.chunks(BATCH_SIZE) {
            let mut batch = Batch::new();
            for text in texts {
                let encoding =
                    tokenizer.encode_fast(text.as_str(), true).map_err(CliError::Tokenizer)?;
                batch.push(encoding.get_ids());
            }
            let output = engine.forward(&batch)?;
            rows.extend((0..output.batch_size()).map(|index| output.row(index).to_vec()));
        }
        Ok(Self(rows))
    }
}

/// How near the answers of two models are.
#[derive(Debug, PartialEq)]
pub(crate) enum Agreement {
    /// Of classifiers.
    Labels {
        num_texts: usize,
        /// Texts to which both give the same label.
        num_equal: usize,
        /// Of the exact and of the packed model, where labels are known.
        accuracy: Option<[f64; 2]>,
    },
    /// Of models that give embeddings.
    Embeddings { mean_cosine: f64, min_cosine: f64 },
}

impl Agreement {
    pub(crate) fn between(
        exact: &Answers,
        packed: &Answers,
        bundle: &Bundle,
        calibration: &Calibration,
    ) -> Self {
        if bundle.labels().is_empty() {
            return Self::between_embeddings(exact, packed);
        }
        Self::between_labels(exact, packed, calibration.labels.as_deref())
    }

    fn between_labels(exact: &Answers, packed: &Answers, truth: Option<&[usize]>) -> Self {
        let [exact, packed] = [exact, packed]
            .map(|answers| answers.0.iter().map(|row| best(row)).collect::<Vec<_>>());
        let share = |labels: &[usize], truth: &[usize]| {
            let right = labels.iter().zip(truth).filter(|(label, truth)| label == truth).count();
            right as f64 / truth.len() as f64
        };
        Self::Labels {
            num_texts: exact.len(),
            num_equal: exact.iter().zip(&packed).filter(|(a, b)| a == b).count(),
            accuracy: truth.map(|truth| [share(&exact, truth), share(&packed, truth)]),
        }
    }

    fn between_embeddings(exact: &Answers, packed: &Answers) -> Self {
        let cosines: Vec<f64> = exact.0.iter().zip(&packed.0).map(|(a, b)| cosine(a, b)).collect();
        Self::Embeddings {
            mean_cosine: cosines.iter().sum::<f64>() / cosines.len() as f64,
            min_cosine: cosines.iter().copied().fold(1.0, f64::min),
        }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labels { num_texts, num_equal, accuracy } => {
                let share = 100.0 * *num_equal as f64 / *num_texts as f64;
                write!(formatter, "same label: {num_equal} of {num_texts} texts, {share:.2}%")?;
                match accuracy.map(|accuracy| accuracy.map(|share| 100.0 * share)) {
                    Some([exact, packed]) => {
                        write!(formatter, "; accuracy {exact:.2}% exact, {packed:.2}% packed")
                    }
                    None => Ok(()),
                }
            }
            Self::Embeddings { mean_cosine, min_cosine } => {
                write!(formatter, "cosine: {mean_cosine:.5} in the mean, {min_cosine:.5} at least")
            }
        }
    }
}

/// Index of the largest number.
fn best(row: &[f32]) -> usize {
    let largest = row.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    largest.map_or(0, |(index, _)| index)
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_counts_labels_and_accuracy() {
        let exact = Answers(vec![vec![0.0, 1.0], vec![2.0, 1.0], vec![0.0, 1.0], vec![1.0, 0.0]]);
        let packed = Answers(vec![vec![0.0, 9.0], vec![2.0, 1.0], vec![1.5, 1.0], vec![1.0, 0.9]]);
        let agreement = Agreement::between_labels(&exact, &packed, Some(&[1, 0, 1, 1]));
        let expected =
            Agreement::Labels { num_texts: 4, num_equal: 3, accuracy: Some([0.75, 0.5]) };
        assert_eq!(agreement, expected);
        assert_eq!(
            agreement.to_string(),
            "same label: 3 of 4 texts, 75.00%; accuracy 75.00% exact, 50.00% packed"
        );
    }

    #[test]
    fn agreement_of_embeddings_is_their_cosine() {
        let exact = Answers(vec![vec![1.0, 0.0], vec![2.0, 2.0]]);
        let packed = Answers(vec![vec![0.0, 3.0], vec![1.0, 1.0]]);
        let agreement = Agreement::between_embeddings(&exact, &packed);
        let text = agreement.to_string();
        assert_eq!(text, "cosine: 0.50000 in the mean, 0.00000 at least");
    }

    #[test]
    fn there_are_sentences_to_compare() {
        assert!(Calibration::bundled().texts.len() >= 100);
    }
}
