use engine_gpu::{
    Device, DeviceError,
    kernel::{Order, Packed, Unpack},
};
use half::bf16;

use super::{Room, put, untouched};
use crate::Element;

/// Output channels of a panel.
const PANEL: usize = 32;

/// `unpack.cu`: every number exactly, of any size, and what is none.
pub fn unpack<T: Element>(
    device: &mut impl Device,
    dtype: Packed,
    order: Order,
    [num_rows, stride]: [usize; 2],
    seed: u64,
) -> Result<(), DeviceError> {
    let random = &mut fastrand::Rng::with_seed(seed);
    let per_word = match dtype {
        Packed::F32 => 1,
        Packed::Bf16 => 2,
        Packed::Int8 => 4,
    };
    let num_words = stride / per_word;
    let scales: Vec<f32> = (0..num_rows).map(|_| random.f32() * 10.0).collect();
    let mut packed = vec![0u32; num_rows * num_words];
    let mut expected = Vec::with_capacity(num_rows * stride);
    for (row, scale) in scales.iter().enumerate() {
        for column in 0..stride {
            // Any bits, of which some are infinite or no number, and more numbers of a usual size.
            let bits = random.u32(..);
            let usual = (random.f32() - 0.5) * 2f32.powi(random.i32(-30..20));
            let number = if random.u32(..4) == 0 { f32::from_bits(bits) } else { usual };
            let (bits, value) = match dtype {
                Packed::F32 => (number.to_bits(), number),
                Packed::Bf16 => {
                    let number = bf16::from_f32(number);
                    (u32::from(number.to_bits()), number.to_f32())
                }
                Packed::Int8 => (bits & 0xff, f32::from(bits as u8 as i8) * scale),
            };
            let word = column / per_word;
            let place = match order {
                Order::Rows => row * num_words + word,
                Order::Panels => (row / PANEL * num_words + word) * PANEL + row % PANEL,
            };
            packed[place] |= bits << (32 / per_word * (column % per_word));
            expected.push(T::rounded(value).value());
        }
    }
    let output = Room::<T>::make(device, num_rows * stride + 8)?;
    let args = Unpack {
        packed: put(device, &packed)?,
        scales: put(device, &scales)?,
        output: output.address,
        num_rows: num_rows as i64,
        stride: stride as i64,
        dtype,
        order,
    };
    device.launch(&args.launch(T::DTYPE))?;
    let output = output.read(device)?;
    let (written, spare) = output.split_at(expected.len());
    for (index, (value, expected)) in written.iter().zip(&expected).enumerate() {
        let value = value.value();
        if value.to_bits() != expected.to_bits() && !(value.is_nan() && expected.is_nan()) {
            let [row, column] = [index / stride, index % stride];
            let reason = format!("row {row}, column {column} is {value} and not {expected}");
            return Err(reason.into());
        }
    }
    untouched(spare, 1)
}
