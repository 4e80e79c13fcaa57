use bytemuck::NoUninit;

use super::{Address, Dtype, Launch};

const THREADS: u64 = 256;
/// Of a thread.
const NUMBERS: u64 = 8;

/// Arguments of `unpack.cu`.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
pub struct Unpack {
    /// Words of 32 bits, as a bundle holds them.
    pub packed: Address,
    /// `f32` `[num_rows]`: what a step of an 8-bit row is worth; not read of other numbers
    pub scales: Address,
    /// `[num_rows, stride]`
    pub output: Address,
    /// A multiple of 32, if in panels.
    pub num_rows: i64,
    /// A multiple of 8.
    pub stride: i64,
    /// The numbers.
    pub dtype: Packed,
    /// Where they are.
    pub order: Order,
}

/// Numbers of a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(u32)]
pub enum Packed {
    /// One a word.
    F32,
    /// Two a word, the first in the low bits.
    Bf16,
    /// Four a word, the first in the lowest bits.
    Int8,
}

/// How a bundle lays out a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(u32)]
pub enum Order {
    /// Panels of 32 rows, `[panels, words, 32]`.
    Panels,
    /// `[rows, words]`
    Rows,
}

impl Unpack {
    /// For all its numbers.
    #[must_use]
    pub fn launch(&self, dtype: Dtype) -> Launch {
        let kernel = dtype.choose("unpack_f16", "unpack_bf16");
        let num_numbers = self.num_rows.unsigned_abs() * self.stride.unsigned_abs();
        let num_blocks = u32::try_from(num_numbers.div_ceil(THREADS * NUMBERS)).unwrap_or(u32::MAX);
        Launch::new(kernel, [num_blocks, 1], THREADS as u32, self)
    }
}
