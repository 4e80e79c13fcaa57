//! What every engine must compute, in the plainest code: the answer key for kernels.
//!
//! Numbers are `f32`, as models have them; sums are kept in `f64`, so that what a kernel is off by is
//! its own. Matrices are row-major, `[rows, columns]`.

use std::f64::consts::{PI, SQRT_2};

use crate::Pooling;

/// Rows of `table` that `ids` name, `[ids.len(), width]`.
///
/// # Panics
///
/// If the table has no such row.
#[must_use]
pub fn look_up(table: &[f32], ids: &[u32], width: usize) -> Vec<f32> {
    ids.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect()
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias` of each row `x` of `rows`.
///
/// # Shapes
///
/// - `rows`: `[num_rows, hidden_size]`
/// - `weight`, `bias`: `[hidden_size]`
/// - returns `[num_rows, hidden_size]`
///
/// # Source
///
/// Ba, Kiros & Hinton 2016, *Layer Normalization*, §3.
///
/// # Example
///
/// ```
/// use sanderling_engine::reference::layer_norm;
/// assert_eq!(layer_norm(&[1.0, 3.0], &[1.0, 2.0], &[0.0, 0.5], 0.0), [-1.0, 2.5]);
/// ```
#[must_use]
pub fn layer_norm(rows: &[f32], weight: &[f32], bias: &[f32], epsilon: f32) -> Vec<f32> {
    let mut normal = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(weight.len()) {
        let mean = row.iter().copied().map(f64::from).sum::<f64>() / row.len() as f64;
        let squares = row.iter().map(|&value| (f64::from(value) - mean).powi(2));
        let variance = squares.sum::<f64>() / row.len() as f64;
        let scale = 1.0 / (variance + f64::from(epsilon)).sqrt();
        for ((&value, &weight), &bias) in row.iter().zip(weight).zip(bias) {
            let value = (f64::from(value) - mean) * scale * f64::from(weight) + f64::from(bias);
            normal.push(value as f32);
        }
    }
    normal
}

/// `activate(weight · x + bias)` of each row `x` of `rows`.
///
/// # Shapes
///
/// - `rows`: `[num_rows, in_features]`
/// - `weight`: `[out_features, in_features]`
/// - `bias`: `[out_features]`
/// - returns `[num_rows, out_features]`
///
/// # Example
///
/// ```
/// use sanderling_engine::reference::linear;
/// let identity = |x| x;
/// assert_eq!(linear(&[1.0, 2.0], &[3.0, 4.0, 5.0, 6.0], &[0.0, 1.0], identity), [11.0, 18.0]);
/// ```
#[must_use]
pub fn linear(
    rows: &[f32],
    weight: &[f32],
    bias: &[f32],
    activate: impl Fn(f64) -> f64,
) -> Vec<f32> {
    let in_features = weight.len() / bias.len();
    let mut output = Vec::with_capacity(rows.len() / in_features * bias.len());
    for row in rows.chunks_exact(in_features) {
        for (weight, &bias) in weight.chunks_exact(in_features).zip(bias) {
            output.push(activate(dot(row, weight) + f64::from(bias)) as f32);
        }
    }
    output
}

/// `x/2 · (1 + erf(x/√2))`
///
/// # Source
///
/// Hendrycks & Gimpel 2016, *Gaussian Error Linear Units*, §2.
#[must_use]
pub fn gelu(x: f64) -> f64 {
    x / 2.0 * (1.0 + erf(x / SQRT_2))
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`
///
/// # Source
///
/// Hendrycks & Gimpel 2016, *Gaussian Error Linear Units*, §2.
#[must_use]
pub fn gelu_tanh(x: f64) -> f64 {
    x / 2.0 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
}

/// `∫ 2/√π e^(-t²)` from 0 to `x`.
///
/// # Source
///
/// Abramowitz & Stegun 1964, *Handbook of Mathematical Functions*, 7.1.6.
fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let mut term = 2.0 / PI.sqrt() * x * (-x * x).exp();
    let mut sum = term;
    for n in 1..200 {
        term *= 2.0 * x * x / (2.0 * f64::from(n) + 1.0);
        sum += term;
    }
    sum
}

/// A bias of attention by the distance from query to key.
///
/// # Shapes
///
/// - `values`: `[num_heads, 2 * max_seqlen - 1]`; of distance `key - query` at
///   `key - query + max_seqlen - 1`
#[derive(Debug, Clone, Copy)]
pub struct PositionBias<'a> {
    /// Added to the scores.
    pub values: &'a [f32],
    /// Of the longest sequence that it is for.
    pub max_seqlen: usize,
}

/// `softmax(Q · Kᵀ / √head_dim + bias) · V` of each head, over each sequence.
///
/// # Shapes
///
/// - `query_key_value`: `[num_tokens, 3 * num_heads * head_dim]`: all heads' queries, then keys, then
///   values
/// - `cu_seqlens`: `[batch_size + 1]`, in tokens
/// - returns `[num_tokens, num_heads * head_dim]`
///
/// # Source
///
/// Vaswani et al. 2017, *Attention Is All You Need*, §3.2; the bias: Raffel et al. 2020, *Exploring
/// the Limits of Transfer Learning*, §2.1.
#[must_use]
pub fn attention(
    query_key_value: &[f32],
    cu_seqlens: &[u32],
    num_heads: usize,
    head_dim: usize,
    bias: Option<PositionBias<'_>>,
) -> Vec<f32> {
    let part = num_heads * head_dim;
    let of = |which: usize, token: usize, head: usize| {
        &query_key_value[token * 3 * part + which * part + head * head_dim..][..head_dim]
    };
    let mut context = vec![0.0; query_key_value.len() / 3];
    for bounds in cu_seqlens.windows(2) {
        let sequence = bounds[0] as usize..bounds[1] as usize;
        for (query, head) in
            sequence.clone().flat_map(|query| (0..num_heads).map(move |h| (query, h)))
        {
            let score = |key: usize| {
                let product = dot(of(0, query, head), of(1, key, head));
                let bias = bias.map_or(0.0, |bias| {
                    let middle = head * (2 * bias.max_seqlen - 1) + bias.max_seqlen - 1;
                    bias.values[middle + key - query]
                });
                product / (head_dim as f64).sqrt() + f64::from(bias)
            };
            let scores: Vec<f64> = sequence.clone().map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let row = &mut context[query * part + head * head_dim..][..head_dim];
            for (column, value) in row.iter_mut().enumerate() {
                let values = sequence.clone().map(|key| f64::from(of(2, key, head)[column]));
                let sum: f64 =
                    weights.iter().zip(values).map(|(weight, value)| weight * value).sum();
                *value = (sum / total) as f32;
            }
        }
    }
    context
}

/// One row for the hidden states of each sequence.
///
/// # Shapes
///
/// - `hidden_states`: `[num_tokens, hidden_size]`
/// - `cu_seqlens`: `[batch_size + 1]`, in tokens; no sequence is empty
/// - returns `[batch_size, hidden_size]`
///
/// # Source
///
/// Reimers & Gurevych 2019, *Sentence-BERT*, §3.
///
/// # Example
///
/// ```
/// use sanderling_engine::{Pooling, reference::pool};
/// // Two sequences of 2 and 1 tokens, hidden_size = 2.
/// let hidden_states = [1.0, 0.0, 3.0, 4.0, 7.0, 8.0];
/// let embeddings = pool(&hidden_states, &[0, 2, 3], 2, Pooling::Mean);
/// assert_eq!(embeddings, [2.0, 2.0, 7.0, 8.0]);
/// ```
#[must_use]
pub fn pool(
    hidden_states: &[f32],
    cu_seqlens: &[u32],
    hidden_size: usize,
    pooling: Pooling,
) -> Vec<f32> {
    let mut embeddings = Vec::new();
    for bounds in cu_seqlens.windows(2) {
        let [start, end] = [bounds[0] as usize, bounds[1] as usize];
        let sequence = &hidden_states[start * hidden_size..end * hidden_size];
        let column = |column: usize| sequence[column..].iter().step_by(hidden_size).copied();
        match pooling {
            Pooling::Mean => embeddings.extend((0..hidden_size).map(|index| {
                let sum: f64 = column(index).map(f64::from).sum();
                (sum / (end - start) as f64) as f32
            })),
            Pooling::Cls => embeddings.extend_from_slice(&sequence[..hidden_size]),
            Pooling::Last => {
                embeddings.extend_from_slice(&sequence[sequence.len() - hidden_size..])
            }
            Pooling::Max => embeddings.extend((0..hidden_size).map(|index| {
                // Not `f32::max`, which would hide NaN.
                let larger = |a: f32, b: f32| if a >= b || a.is_nan() { a } else { b };
                column(index).fold(f32::NEG_INFINITY, larger)
            })),
        }
    }
    embeddings
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_its_integral() {
        // scipy.special.erf, 1.17
        for (x, expected) in [(0.0, 0.0), (1.0, 0.841_344_746_068_542_9), (-3.0, -0.004_049_694_1)]
        {
            assert!((gelu(x) - expected).abs() < 1e-10, "{x}: {}", gelu(x));
        }
        assert_eq!((gelu(20.0), gelu(-20.0)), (20.0, 0.0));
        assert!((gelu_tanh(1.0) - 0.841_191_990_6).abs() < 1e-10);
    }

    #[test]
    fn attention_is_an_average_weighted_by_likeness() {
        // One head of one element; the scores of token 1 are ln 1 and ln 3.
        let query_key_value = [0.0, 0.0, 10.0, 1.0, 3f32.ln(), 20.0, 5.0, 5.0, 7.0];
        let context = attention(&query_key_value, &[0, 2, 3], 1, 1, None);
        let expected = [15.0, 17.5, 7.0];
        for (value, expected) in context.iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{context:?}");
        }
    }

    #[test]
    fn a_bias_of_attention_is_by_distance() {
        let query_key_value = [0.0, 0.0, 10.0, 0.0, 0.0, 20.0];
        // Nobody looks back, and nobody at itself.
        let values = [f32::NEG_INFINITY, f32::NEG_INFINITY, 0.0];
        let bias = PositionBias { values: &values, max_seqlen: 2 };
        let context = attention(&query_key_value, &[0, 2], 1, 1, Some(bias));
        assert!(context[0] == 20.0 && context[1].is_nan(), "{context:?}");
    }

    #[test]
    fn each_sequence_is_pooled_by_itself() {
        let hidden_states = [1.0, 0.0, 3.0, -4.0, 7.0, f32::NAN];
        for (pooling, first, second) in [
            (Pooling::Mean, [2.0, -2.0], 7.0),
            (Pooling::Cls, [1.0, 0.0], 7.0),
            (Pooling::Last, [3.0, -4.0], 7.0),
            (Pooling::Max, [3.0, 0.0], 7.0),
        ] {
            let rows = pool(&hidden_states, &[0, 2, 3], 2, pooling);
            assert_eq!((&rows[..2], rows[2]), (&first[..], second), "{pooling}");
            assert!(rows[3].is_nan(), "{pooling}");
        }
    }
}
