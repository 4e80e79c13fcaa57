use engine::reference;
use engine_gpu::kernel::{Norm, Normalize};

use super::{SPARE_ROWS, numbers, padded, rows};
use crate::{Buffer, Element, run};

/// How rows are normalized, in memory.
pub(super) struct NormWeights {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) args: Norm,
    _buffers: [Buffer<f32>; 2],
}

pub(super) const EPSILON: f32 = 1e-5;

impl NormWeights {
    pub(super) fn draw(random: &mut fastrand::Rng, hidden_size: usize, stride: usize) -> Self {
        let weight: Vec<f32> = (0..hidden_size).map(|_| random.f32() + 0.5).collect();
        let bias: Vec<f32> = (0..hidden_size).map(|_| random.f32() - 0.5).collect();
        let buffers = [&weight, &bias].map(|row| Buffer::of(&padded(row, hidden_size, stride)));
        let args = Norm {
            weight: buffers[0].address(),
            bias: buffers[1].address(),
            stride: stride as i64,
            hidden_size: hidden_size as i32,
            epsilon: EPSILON,
        };
        Self { weight, bias, args, _buffers: buffers }
    }
}

/// `norm.cu`
pub fn norm<T: Element>(
    variant: &str,
    num_tokens: usize,
    hidden_size: usize,
    seed: u64,
) -> Result<(), String> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let stride = hidden_size.next_multiple_of(64);
    // Around 3: a mean that is none of the padding's.
    let mut input = numbers::<T>(random, num_tokens * hidden_size, 1.0);
    input.iter_mut().for_each(|value| *value = T::rounded(*value + 3.0).value());
    let weights = NormWeights::draw(random, hidden_size, stride);
    let count = Buffer::of(&[num_tokens as u32]);
    let source = T::buffer(&padded(&input, hidden_size, stride));
    let output = Buffer::<T>::poisoned((num_tokens + SPARE_ROWS) * stride);
    let args = Normalize {
        num_tokens: count.address(),
        input: source.address(),
        output: output.address(),
        norm: weights.args,
    };
    run(variant, &args.launch(T::DTYPE, (num_tokens + SPARE_ROWS) as u32), seed)?;
    let expected = reference::layer_norm(&input, &weights.weight, &weights.bias, EPSILON);
    rows(&output, &padded(&expected, hidden_size, stride), stride)
}
