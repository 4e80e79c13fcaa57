//! Hidden states to one row, in the plainest code: for what tract gives, and to test the kernels by.

use engine::Pooling;

/// One row of an output `[1, width]`, or of hidden states `[1, seq_len, hidden_size]`.
pub(crate) fn pool(values: Vec<f32>, shape: &[usize], pooling: Pooling) -> Vec<f32> {
    let &[1, seq_len, width] = shape else { return values };
    let column = |column: usize| values[column..].iter().step_by(width).copied();
    match pooling {
        Pooling::Mean => {
            (0..width).map(|index| column(index).sum::<f32>() / seq_len as f32).collect()
        }
        Pooling::Cls => values[..width].to_vec(),
        Pooling::Last => values[(seq_len - 1) * width..].to_vec(),
        Pooling::Max => {
            (0..width).map(|index| column(index).fold(f32::NEG_INFINITY, larger)).collect()
        }
    }
}

/// The larger of the two, NaN if one of them is: `f32::max` would hide it.
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}
