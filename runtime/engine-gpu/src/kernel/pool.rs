use bytemuck::NoUninit;

use super::{Address, Dtype, Launch};

const THREADS: u32 = 128;

/// Arguments of `pool.cu`.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
pub struct Pool {
    /// `u32`: how many there are.
    pub batch_size: Address,
    /// `u32` `[batch_size + 1]`, in tokens; no sequence is empty
    pub cu_seqlens: Address,
    /// `[num_tokens, stride]`
    pub hidden_states: Address,
    /// `f32` `[batch_size, hidden_size]`
    pub embeddings: Address,
    /// Elements from one token to the next.
    pub stride: i64,
    /// Elements of an embedding.
    pub hidden_size: i32,
    /// How the hidden states of a sequence become one row.
    pub pooling: Pooling,
}

/// [`engine::Pooling`], as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(u32)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    Cls,
    /// The last token's.
    Last,
    /// The largest of each column.
    Max,
}

impl From<engine::Pooling> for Pooling {
    fn from(pooling: engine::Pooling) -> Self {
        match pooling {
            engine::Pooling::Mean => Self::Mean,
            engine::Pooling::Cls => Self::Cls,
            engine::Pooling::Last => Self::Last,
            engine::Pooling::Max => Self::Max,
        }
    }
}

impl Pool {
    /// For up to `max_batch_size` sequences.
    #[must_use]
    pub fn launch(&self, dtype: Dtype, max_batch_size: u32) -> Launch {
        let kernel = dtype.choose("pool_f16", "pool_bf16");
        let grid = [self.hidden_size.unsigned_abs().div_ceil(THREADS), max_batch_size];
        Launch::new(kernel, grid, THREADS, self)
    }
}
