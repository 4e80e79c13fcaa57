use engine::reference;
use engine_gpu::{
    Device, DeviceError,
    kernel::{Activation, Address, Linear, STRIDE, Tile, WideTile},
};

use super::{Room, SPARE_ROWS, numbers, padded, put, rows, same, untouched};
use crate::Element;

/// One of the kernels, and what a block of it computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `linear.cu`
    Any(Tile),
    /// `sm90_linear.cu`
    Wide(WideTile),
}

/// A linear layer, with what the kernel can do chosen by chance. Passes on a device that has no such kernel.
pub fn linear<T: Element>(
    device: &mut impl Device,
    form: Form,
    num_rows: usize,
    [in_features, out_features]: [usize; 2],
    seed: u64,
) -> Result<(), DeviceError> {
    let is_wide = matches!(form, Form::Wide(_));
    if is_wide && !device.has_sm90() {
        return Ok(());
    }
    let random = &mut fastrand::Rng::with_seed(seed);
    let [in_stride, out_stride] =
        [in_features, out_features].map(|width| width.next_multiple_of(STRIDE));
    let (activation, activate) = activation(random);
    let input = numbers::<T>(random, num_rows * in_features, 1.0);
    let weight =
        numbers::<T>(random, out_features * in_features, 4.0 / (in_features as f32).sqrt());
    let bias: Vec<f32> = (0..out_features).map(|_| random.f32() - 0.5).collect();
    let residual = numbers::<T>(random, num_rows * out_features, 1.0);
    let is_logits = !is_wide && random.u32(..4) == 0;
    let has_residual = !is_logits && random.bool();
    // Where the rows are that the kernel is to take: in order, or anywhere.
    let mut places: Vec<u32> = (0..num_rows as u32).collect();
    let is_scattered = !is_wide && random.bool();
    if is_scattered {
        random.shuffle(&mut places);
    }
    let mut scattered = vec![0.0; input.len()];
    for (row, &place) in input.chunks_exact(in_features).zip(&places) {
        scattered[place as usize * in_features..][..in_features].copy_from_slice(row);
    }

    let max_rows = num_rows + SPARE_ROWS;
    let mut padded_input = T::all(&padded(&scattered, in_features, in_stride));
    if is_wide {
        padded_input.resize(max_rows * in_stride, T::rounded(f32::NAN));
    }
    let mut padded_weight = padded(&weight, in_features, in_stride);
    padded_weight.resize(out_stride * in_stride, 0.0);
    let output = Room::<T>::make(device, max_rows * out_stride)?;
    let logits = Room::<f32>::make(device, max_rows * out_features)?;
    let padded_residual = T::all(&padded(&residual, out_features, out_stride));
    let args = Linear {
        num_rows: put(device, &[num_rows as u32])?,
        input_rows: if is_scattered { put(device, &places)? } else { Address::NONE },
        input: put(device, &padded_input)?,
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
    let launch = match form {
        Form::Any(tile) => args.launch(T::DTYPE, tile, max_rows as u32),
        // So few blocks that they have more than a tile each.
        Form::Wide(tile) => args.wide_launch(device, T::DTYPE, tile, max_rows as u32, 4)?,
    };
    device.launch(&launch)?;

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
        return untouched(&output, max_rows);
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
