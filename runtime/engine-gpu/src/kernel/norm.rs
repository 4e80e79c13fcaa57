use bytemuck::{NoUninit, Pod, Zeroable};

use super::{Address, Dtype, Launch};

/// Widest row that a warp holds in its registers.
pub const MAX_HIDDEN_SIZE: usize = 2048;

const THREADS: u32 = 128;
const ROWS_PER_BLOCK: u32 = THREADS / 32;

/// How rows are normalized.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Norm {
    /// `f32` `[stride]`, zero behind `hidden_size`
    pub weight: Address,
    /// `f32` `[stride]`, zero behind `hidden_size`
    pub bias: Address,
    /// Elements from one row to the next, a multiple of 8, up to [`MAX_HIDDEN_SIZE`].
    pub stride: i64,
    /// Elements of a row that count; those behind it are zero.
    pub hidden_size: i32,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Arguments of `norm.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Normalize {
    /// `u32`: how many there are.
    pub num_tokens: Address,
    /// `[num_tokens, stride]`
    pub input: Address,
    /// `[num_tokens, stride]`; may be the input
    pub output: Address,
    /// Of each row.
    pub norm: Norm,
}

impl Normalize {
    /// For up to `max_tokens`.
    #[must_use]
    pub fn launch(&self, dtype: Dtype, max_tokens: u32) -> Launch {
        launch_rows(dtype.choose("norm_f16", "norm_bf16"), max_tokens, self)
    }
}

/// A warp a row.
pub(super) fn launch_rows(kernel: &'static str, max_rows: u32, args: &impl NoUninit) -> Launch {
    Launch::new(kernel, [max_rows.div_ceil(ROWS_PER_BLOCK), 1], THREADS, args)
}
