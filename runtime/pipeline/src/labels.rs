/// One label and how probable the model finds it.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelScore {
    /// As the model's `config.json` names it.
    pub label: String,
    /// 0 to 1; the scores of all labels sum to 1.
    pub score: f32,
}

/// The `top_k` most probable labels, best first; equal scores in the order of `labels`.
///
/// # Shapes
///
/// - `logits`, `labels`: `[num_labels]`
pub(crate) fn top_labels(logits: &[f32], labels: &[String], top_k: usize) -> Vec<LabelScore> {
    let mut scored: Vec<(f32, &String)> = softmax(logits).into_iter().zip(labels).collect();
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    let best = scored.into_iter().take(top_k);
    best.map(|(score, label)| LabelScore { label: label.clone(), score }).collect()
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
        let ranked = top_labels(&[0.0, 2.0_f32.ln(), 1.0_f32.ln()], &labels, 3);
        let names: Vec<&str> = ranked.iter().map(|ranked| ranked.label.as_str()).collect();
        assert_eq!(names, ["b", "a", "c"]);
        for (ranked, expected) in ranked.iter().zip([0.5, 0.25, 0.25]) {
            assert!((ranked.score - expected).abs() < 1e-6, "{ranked:?}");
        }
        assert_eq!(top_labels(&[0.0, 1.0, 0.0], &labels, 1).len(), 1);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        assert_eq!(softmax(&[3.0e38, -3.0e38]), [1.0, 0.0]);
    }
}
