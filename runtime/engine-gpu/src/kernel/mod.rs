//! The kernels of `kernels/*.cu`: what each takes, and how it is started. A struct of arguments is laid
//! out as its twin in the `.cu` file; shapes, memory and limits are said there.

mod attention;
mod embeddings;
mod linear;
mod norm;
mod pool;
mod sm90_linear;
mod unpack;

use bytemuck::{NoUninit, Pod, Zeroable};

pub use self::{
    attention::{Attention, AttentionBlock, attention_blocks, padded_head_dim},
    embeddings::Embeddings,
    linear::{Activation, Linear, STRIDE, Tile},
    norm::{MAX_HIDDEN_SIZE, Norm, Normalize},
    pool::{Pool, Pooling},
    sm90_linear::{Boxes, TensorMap, WideTile},
    unpack::{Order, Packed, Unpack},
};

/// A place in the memory of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// No place, for what a kernel may be without.
    pub const NONE: Self = Self(0);

    /// The place so many bytes behind this one.
    #[must_use]
    pub fn behind(self, num_bytes: usize) -> Self {
        Self(self.0 + num_bytes as u64)
    }
}

/// The elements of weights and hidden states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 10 bits of fraction, up to 65,504.
    F16,
    /// 7 bits of fraction, as far as `f32`. From compute capability 8.0.
    Bf16,
}

impl Dtype {
    /// Bytes of an element.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        2
    }

    /// Of the two kernels that differ in this alone.
    fn choose(self, f16: &'static str, bf16: &'static str) -> &'static str {
        match self {
            Self::F16 => f16,
            Self::Bf16 => bf16,
        }
    }
}

/// One start of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Its name.
    pub kernel: &'static str,
    /// Blocks, `[x, y, z]`.
    pub grid: [u32; 3],
    /// Of a block.
    pub num_threads: u32,
    /// Of a block, beside what its kernel says itself.
    pub shared_bytes: u32,
    /// Its struct of arguments.
    pub args: Vec<u8>,
}

impl Launch {
    fn new(kernel: &'static str, grid: [u32; 2], num_threads: u32, args: &impl NoUninit) -> Self {
        let args = bytemuck::bytes_of(args).to_vec();
        Self { kernel, grid: [grid[0], grid[1], 1], num_threads, shared_bytes: 0, args }
    }
}
