use engine::reference;
use engine_gpu::{
    Device, DeviceError,
    kernel::{Activation, Address, Linear, STRIDE, Tile},
};

use super::{Room, SPARE_ROWS, numbers, padded, put, rows, same, untouched};
use crate::Element;

/// `linear.cu`, with what it can do chosen by chance.
pub fn linear<T: Element>(
    device: &mut impl Device,
    tile: Tile,
    num_rows: usize,
    [in_features, out_features]: [usize; 2],
    seed: u64,
) -> Result<(), DeviceError> {
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

    let mut padded_weight = padded(&weight, in_features, in_stride);
    padded_weight.resize(out_stride * in_stride, 0.0);
    let output = Room::<T>::make(device, (num_rows + SPARE_ROWS) * out_stride)?;
    let logits = Room::<f32>::make(device, (num_rows + SPARE_ROWS) * out_features)?;
    let padded_residual = T::all(&padded(&residual, out_features, out_stride));
    let args = Linear {
        num_rows: put(device, &[num_rows as u32])?,
        input_rows: if is_scattered { put(device, &places)? } else { Address::NONE },
        input: put(device, &T::all(&padded(&scattered, in_features, in_stride)))?,
        weight: put(device, &T::all(&padded_weight))?,
        bias: put(device, &padded(&bias, out_features, out_stride))?,
        residual: if has_residual { put(device, &padded_residual)? } else { Address::NONE },
        output: output.address,
        logits: if is_logits { logits.address } else { Address::NONE },
        in_stride: in_stride as i32,
        out_stride: out_stride as i32,
        out_features: out_features as i32,
        activation,
    };
    device.launch(&args.launch(T::DTYPE, tile, (num_rows + SPARE_ROWS) as u32))?;

    let mut expected = reference::linear(&input, &weight, &bias, activate);
    if has_residual {
        expected.iter_mut().zip(&residual).for_each(|(value, residual)| *value += residual);
    }
    let output = output.read(device)?;
    if is_logits {
        let logits = logits.read(device)?;
        let (written, spare) = logits.split_at(expected.len());
        same(written, &expected, out_features, T::TOLERANCE)?;
        untouched(spare, SPARE_ROWS)?;
        return untouched(&output, num_rows + SPARE_ROWS);
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
