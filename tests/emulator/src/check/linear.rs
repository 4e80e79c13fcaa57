use engine::reference;
use engine_gpu::kernel::{Activation, Address, Linear, STRIDE, Tile};

use super::{SPARE_ROWS, numbers, padded, rows, same, untouched};
use crate::{Buffer, Element, run};

/// `linear.cu`, with what it can do chosen by chance.
pub fn linear<T: Element>(
    variant: &str,
    tile: Tile,
    num_rows: usize,
    [in_features, out_features]: [usize; 2],
    seed: u64,
) -> Result<(), String> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let [in_stride, out_stride] =
        [in_features, out_features].map(|width| width.next_multiple_of(STRIDE));
    let (activation, activate) = activation(random);
    let input = numbers::<T>(random, num_rows * in_features, 1.0);
    let weight =
        numbers::<T>(random, out_features * in_features, 4.0 / (in_features as f32).sqrt());
    let bias: Vec<f32> = (0..out_features).map(|_| random.f32() - 0.5).collect();
    let residual = numbers::<T>(random, num_rows * out_features, 1.0);
    let is_logits = random.u32(..4) == 0;
    let has_residual = !is_logits && random.bool();
    // Where the rows are that the kernel is to take: in order, or anywhere.
    let mut places: Vec<u32> = (0..num_rows as u32).collect();
    let is_scattered = random.bool();
    if is_scattered {
        random.shuffle(&mut places);
    }
    let mut scattered = vec![0.0; input.len()];
    for (row, &place) in input.chunks_exact(in_features).zip(&places) {
        scattered[place as usize * in_features..][..in_features].copy_from_slice(row);
    }

    let count = Buffer::of(&[num_rows as u32]);
    let place_buffer = Buffer::of(&places);
    let input_buffer = T::buffer(&padded(&scattered, in_features, in_stride));
    let mut padded_weight = padded(&weight, in_features, in_stride);
    padded_weight.resize(out_stride * in_stride, 0.0);
    let weight_buffer = T::buffer(&padded_weight);
    let bias_buffer = Buffer::of(&padded(&bias, out_features, out_stride));
    let residual_buffer = T::buffer(&padded(&residual, out_features, out_stride));
    let output = Buffer::<T>::poisoned((num_rows + SPARE_ROWS) * out_stride);
    let logits = Buffer::<f32>::poisoned((num_rows + SPARE_ROWS) * out_features);
    let args = Linear {
        num_rows: count.address(),
        input_rows: if is_scattered { place_buffer.address() } else { Address::NONE },
        input: input_buffer.address(),
        weight: weight_buffer.address(),
        bias: bias_buffer.address(),
        residual: if has_residual { residual_buffer.address() } else { Address::NONE },
        output: output.address(),
        logits: if is_logits { logits.address() } else { Address::NONE },
        in_stride: in_stride as i32,
        out_stride: out_stride as i32,
        out_features: out_features as i32,
        activation,
    };
    run(variant, &args.launch(T::DTYPE, tile, (num_rows + SPARE_ROWS) as u32), seed)?;

    let mut expected = reference::linear(&input, &weight, &bias, activate);
    if has_residual {
        expected.iter_mut().zip(&residual).for_each(|(value, residual)| *value += residual);
    }
    if is_logits {
        let (written, spare) = logits.values().split_at(expected.len());
        same(written, &expected, out_features, T::TOLERANCE)?;
        untouched(spare, SPARE_ROWS)?;
        return untouched(output.values(), num_rows + SPARE_ROWS);
    }
    rows(&output, &padded(&expected, out_features, out_stride), out_stride)
}

fn activation(random: &mut fastrand::Rng) -> (Activation, fn(f64) -> f64) {
    match random.u32(..5) {
        0 => (Activation::Identity, |x| x),
        1 => (Activation::Gelu, reference::gelu),
        2 => (Activation::GeluTanh, reference::gelu_tanh),
        3 => (Activation::Relu, |x| x.max(0.0)),
        _ => (Activation::Tanh, f64::tanh),
    }
}
