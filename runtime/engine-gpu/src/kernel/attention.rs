use std::cmp::Reverse;

use bytemuck::{Pod, Zeroable};

use super::{Address, Dtype, Launch};

const THREADS: u32 = 128;

/// Arguments of `attention.cu`.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Attention {
    /// `u32`: how many there are.
    pub num_blocks: Address,
    /// [`AttentionBlock`] `[num_blocks]`
    pub blocks: Address,
    /// `u32` `[batch_size + 1]`, in tokens
    pub cu_seqlens: Address,
    /// `[num_tokens, in_stride]`: all heads' queries, then keys, then values
    pub query_key_value: Address,
    /// `f32` `[num_heads, 2 * max_seqlen - 1]`, by `key - query + max_seqlen - 1`, or none
    pub position_bias: Address,
    /// `[num_tokens, out_stride]`
    pub context: Address,
    /// Of the bias.
    pub max_seqlen: i32,
    /// A multiple of 8.
    pub in_stride: i32,
    /// A multiple of 8.
    pub out_stride: i32,
    /// `1/√head_dim`, before padding.
    pub scale: f32,
}

/// Queries of one sequence that a block computes, of each head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct AttentionBlock {
    /// Which.
    pub sequence: u32,
    /// The first of up to 64.
    pub first_query: u32,
}

impl AttentionBlock {
    /// That a block computes, at most.
    pub const NUM_QUERIES: u32 = 64;
}

/// Blocks for all queries of all sequences: those of long sequences, which take longest, first.
#[must_use]
pub fn attention_blocks(cu_seqlens: &[u32]) -> Vec<AttentionBlock> {
    let lens = cu_seqlens.windows(2).map(|bounds| bounds[1] - bounds[0]);
    let mut sequences: Vec<(u32, u32)> = (0..).zip(lens).collect();
    sequences.sort_by_key(|&(_, seq_len)| Reverse(seq_len));
    let blocks = |(sequence, seq_len): (u32, u32)| {
        let first_queries = (0..seq_len).step_by(AttentionBlock::NUM_QUERIES as usize);
        first_queries.map(move |first_query| AttentionBlock { sequence, first_query })
    };
    sequences.into_iter().flat_map(blocks).collect()
}

/// What `head_dim` is padded to with zeros; `None` if it is wider than any kernel.
#[must_use]
pub fn padded_head_dim(head_dim: u32) -> Option<u32> {
    let padded = head_dim.next_multiple_of(32);
    (32..=128).contains(&padded).then_some(padded)
}

impl Attention {
    /// For up to `max_blocks` of each of `num_heads`; `None` if there is no kernel for `head_dim`.
    #[must_use]
    pub fn launch(
        &self,
        dtype: Dtype,
        head_dim: u32,
        num_heads: u32,
        max_blocks: u32,
    ) -> Option<Launch> {
        let kernel = match head_dim {
            32 => dtype.choose("attention_32_f16", "attention_32_bf16"),
            64 => dtype.choose("attention_64_f16", "attention_64_bf16"),
            96 => dtype.choose("attention_96_f16", "attention_96_bf16"),
            128 => dtype.choose("attention_128_f16", "attention_128_bf16"),
            _ => return None,
        };
        Some(Launch::new(kernel, [max_blocks, num_heads], THREADS, self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_has_a_block_and_no_block_is_empty() {
        let blocks = attention_blocks(&[0, 1, 66, 66, 130]);
        let blocks: Vec<_> =
            blocks.iter().map(|block| (block.sequence, block.first_query)).collect();
        assert_eq!(blocks, [(1, 0), (1, 64), (3, 0), (0, 0)]);
        assert_eq!(attention_blocks(&[0]), []);
    }

    #[test]
    fn heads_are_padded_to_what_a_kernel_takes() {
        let padded = [1, 32, 33, 64, 80, 128, 129].map(padded_head_dim);
        let expected = [Some(32), Some(32), Some(64), Some(64), Some(96), Some(128), None];
        assert_eq!(padded, expected);
        assert_eq!(padded_head_dim(0), None);
    }
}
