use engine::reference;
use engine_gpu::{
    Device, DeviceError,
    kernel::{Norm, Normalize},
};

use super::{Room, SPARE_ROWS, numbers, padded, put, rows};
use crate::Element;

/// How rows are normalized, in memory.
pub(super) struct NormWeights {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) args: Norm,
}

pub(super) const EPSILON: f32 = 1e-5;

impl NormWeights {
    pub(super) fn draw(
        device: &mut impl Device,
        random: &mut fastrand::Rng,
        hidden_size: usize,
        stride: usize,
    ) -> Result<Self, DeviceError> {
        let weight: Vec<f32> = (0..hidden_size).map(|_| random.f32() + 0.5).collect();
        let bias: Vec<f32> = (0..hidden_size).map(|_| random.f32() - 0.5).collect();
        let args = Norm {
            weight: put(device, &padded(&weight, hidden_size, stride))?,
            bias: put(device, &padded(&bias, hidden_size, stride))?,
            stride: stride as i64,
            hidden_size: hidden_size as i32,
            epsilon: EPSILON,
        };
        Ok(Self { weight, bias, args })
    }
}

/// `norm.cu`
pub fn norm<T: Element>(
    device: &mut impl Device,
    num_tokens: usize,
    hidden_size: usize,
    seed: u64,
) -> Result<(), DeviceError> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let stride = hidden_size.next_multiple_of(64);
    // Around 3: a mean that is none of the padding's.
    let mut input = numbers::<T>(random, num_tokens * hidden_size, 1.0);
    input.iter_mut().for_each(|value| *value = T::rounded(*value + 3.0).value());
    let weights = NormWeights::draw(device, random, hidden_size, stride)?;
    let output = Room::<T>::make(device, (num_tokens + SPARE_ROWS) * stride)?;
    let args = Normalize {
        num_tokens: put(device, &[num_tokens as u32])?,
        input: put(device, &T::all(&padded(&input, hidden_size, stride)))?,
        output: output.address,
        norm: weights.args,
    };
    device.launch(&args.launch(T::DTYPE, (num_tokens + SPARE_ROWS) as u32))?;
    let expected = reference::layer_norm(&input, &weights.weight, &weights.bias, EPSILON);
    rows(&output.read(device)?, &padded(&expected, hidden_size, stride), stride)
}
