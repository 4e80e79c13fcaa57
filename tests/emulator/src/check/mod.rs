//! Each kernel against its answer key, on whatever runs kernels, on numbers drawn at random. A check fails
//! with the reason.

mod attention;
mod embeddings;
mod linear;
mod norm;
mod pool;
mod unpack;

use std::marker::PhantomData;

use bytemuck::Pod;
use engine_gpu::{Device, DeviceError, kernel::Address};

pub use self::{
    attention::attention,
    embeddings::embeddings,
    linear::{Form, linear},
    norm::norm,
    pool::pool,
    unpack::unpack,
};
use crate::Element;

/// Rows that there is room for behind those that are written.
const SPARE_ROWS: usize = 3;

/// Numbers around 0, as elements can be.
fn numbers<T: Element>(random: &mut fastrand::Rng, len: usize, scale: f32) -> Vec<f32> {
    let number = |_| T::rounded((random.f32() * 2.0 - 1.0) * scale).value();
    (0..len).map(number).collect()
}

/// `rows` of `width`, zeros behind them up to `stride`.
fn padded(rows: &[f32], width: usize, stride: usize) -> Vec<f32> {
    let pad = |row: &[f32]| {
        let mut row = row.to_vec();
        row.resize(stride, 0.0);
        row
    };
    rows.chunks_exact(width).flat_map(pad).collect()
}

/// `cu_seqlens`, and how many tokens there are.
fn bounds(seq_lens: &[u32]) -> (Vec<u32>, usize) {
    let mut cu_seqlens = vec![0];
    for seq_len in seq_lens {
        cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + seq_len);
    }
    let num_tokens = cu_seqlens[seq_lens.len()] as usize;
    (cu_seqlens, num_tokens)
}

/// Puts `values` on the device.
fn put<T: Pod>(device: &mut impl Device, values: &[T]) -> Result<Address, DeviceError> {
    let place = device.allocate(size_of_val(values))?;
    device.write(place, bytemuck::cast_slice(values))?;
    Ok(place)
}

/// Where a kernel writes, on the device.
struct Room<T> {
    address: Address,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Room<T> {
    /// Of `len` elements, which are ones in every bit: not a number.
    fn make(device: &mut impl Device, len: usize) -> Result<Self, DeviceError> {
        let address = put(device, &vec![0xff_u8; len * size_of::<T>()])?;
        Ok(Self { address, len, of: PhantomData })
    }

    /// What the kernels have left.
    fn read(&self, device: &mut impl Device) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); self.len];
        device.read(self.address, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

/// Whether the first rows of `output` are `expected`, and those behind them untouched.
fn rows<T: Element>(output: &[T], expected: &[f32], stride: usize) -> Result<(), DeviceError> {
    let (written, spare) = output.split_at(expected.len());
    let written: Vec<f32> = written.iter().map(|element| element.value()).collect();
    same(&written, expected, stride, T::TOLERANCE)?;
    untouched(spare, spare.len() / stride)
}

fn same(values: &[f32], expected: &[f32], width: usize, tolerance: f64) -> Result<(), DeviceError> {
    let pairs = values.chunks_exact(width).zip(expected.chunks_exact(width));
    for (index, (row, expected)) in pairs.enumerate() {
        let length = |row: &mut dyn Iterator<Item = f64>| row.map(|x| x * x).sum::<f64>().sqrt();
        let differences = row.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b));
        let off = length(&mut { differences });
        // Rows of next to nothing are measured by what others are.
        let whole = length(&mut expected.iter().map(|&x| f64::from(x))).max(0.1);
        if off.is_nan() || off > tolerance * whole {
            return Err(format!("row {index} is off by {:.1e} of its length", off / whole).into());
        }
    }
    Ok(())
}

fn untouched<T: Pod>(spare: &[T], num_rows: usize) -> Result<(), DeviceError> {
    match bytemuck::cast_slice::<T, u8>(spare).iter().all(|&byte| byte == 0xff) {
        true => Ok(()),
        false => {
            Err(format!("something was written to the {num_rows} rows behind the last").into())
        }
    }
}
