use crate::Scores;

/// One label and how well it fits.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScore {
    /// Its place among the model's labels.
    pub index: usize,
    /// As the model's `config.json` names it.
    pub label: String,
    /// 0 to 1, or the model's logit.
    pub score: f32,
}

/// The `top_k` labels that fit best, best first; equal ones in the order of `labels`.
///
/// # Shapes
///
/// - `logits`, `labels`: `[num_labels]`
pub(crate) fn top_labels(
    logits: &[f32],
    labels: &[String],
    top_k: usize,
    scores: Scores,
) -> Vec<LabelScore> {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    // By logit: sigmoids of large ones are equal.
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    let scores = match scores {
        Scores::Softmax => softmax(logits),
        Scores::Sigmoid => logits.iter().copied().map(sigmoid).collect(),
        Scores::Logits => logits.to_vec(),
    };
    let best = order.into_iter().take(top_k);
    let label =
        |index: usize| LabelScore { index, label: labels[index].clone(), score: scores[index] };
    best.map(label).collect()
}

/// `1 / (1 + exp(-x))`
pub(crate) fn sigmoid(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}

/// `exp(x) / sum(exp(x))`, shifted by the largest logit so that nothing overflows.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exps.iter().sum();
    exps.into_iter().map(|exp| exp / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_come_best_first_with_scores_that_sum_to_one() {
        let labels = ["a", "b", "c"].map(str::to_owned);
        let ranked = top_labels(&[0.0, 2.0_f32.ln(), 1.0_f32.ln()], &labels, 3, Scores::Softmax);
        let names: Vec<&str> = ranked.iter().map(|ranked| ranked.label.as_str()).collect();
        assert_eq!(names, ["b", "a", "c"]);
        assert_eq!(ranked.iter().map(|ranked| ranked.index).collect::<Vec<_>>(), [1, 0, 2]);
        for (ranked, expected) in ranked.iter().zip([0.5, 0.25, 0.25]) {
            assert!((ranked.score - expected).abs() < 1e-6, "{ranked:?}");
        }
        assert_eq!(top_labels(&[0.0, 1.0, 0.0], &labels, 1, Scores::Softmax).len(), 1);
    }

    #[test]
    fn scores_may_stand_for_themselves() {
        let labels = ["a", "b"].map(str::to_owned);
        let scores = |scores| {
            let ranked = top_labels(&[0.0, 60.0], &labels, 2, scores);
            ranked.iter().map(|ranked| ranked.score).collect::<Vec<_>>()
        };
        assert_eq!(scores(Scores::Sigmoid), [1.0, 0.5]);
        assert_eq!(scores(Scores::Logits), [60.0, 0.0]);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        assert_eq!(softmax(&[3.0e38, -3.0e38]), [1.0, 0.0]);
    }
}
