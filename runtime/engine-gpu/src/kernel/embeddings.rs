use bytemuck::{Pod, Zeroable};

use super::{Address, Dtype, Launch, Norm, norm};

/// Arguments of `embeddings.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Embeddings {
    /// `u32`: how many there are.
    pub num_tokens: Address,
    /// `u32` `[num_tokens]`
    pub input_ids: Address,
    /// `u32` `[num_tokens]`
    pub position_ids: Address,
    /// `u32` `[num_tokens]`; not read without a table of types.
    pub token_type_ids: Address,
    /// `[vocab_size, stride]`
    pub words: Address,
    /// `[max_position_embeddings, stride]`
    pub positions: Address,
    /// `[type_vocab_size, stride]`, or none
    pub token_types: Address,
    /// `[num_tokens, stride]`
    pub hidden_states: Address,
    /// Of the sums.
    pub norm: Norm,
}

impl Embeddings {
    /// For up to `max_tokens`.
    #[must_use]
    pub fn launch(&self, dtype: Dtype, max_tokens: u32) -> Launch {
        let kernel = dtype.choose("embeddings_f16", "embeddings_bf16");
        norm::launch_rows(kernel, max_tokens, self)
    }
}
