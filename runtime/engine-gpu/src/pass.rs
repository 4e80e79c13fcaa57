//! A forward pass: the memory that it uses, and the kernels that it starts.

use encoder::{Description, Layout, Tokens, padded};
use engine::{EngineError, Pooling};

use crate::{
    device::{Device, DeviceError},
    failed,
    kernel::{
        Address, Attention, AttentionBlock, Embeddings, Launch, Linear, Normalize, Pool,
        attention_blocks, padded_head_dim,
    },
    weights::{self, Weights},
};

/// Most that a pass of some size has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) max_tokens: u32,
    pub(crate) max_sequences: u32,
}

impl Size {
    /// All sizes, smallest first.
    pub(crate) const ALL: [Self; 9] = {
        let mut sizes = [Self { max_tokens: 64, max_sequences: 64 }; 9];
        let mut index = 1;
        while index < sizes.len() {
            let max_tokens = sizes[index - 1].max_tokens * 2;
            // Sequences of 8 tokens and more, as most are: each may cost an empty block of every head.
            let max_sequences = if max_tokens < 512 { 64 } else { max_tokens / 8 };
            sizes[index] = Self { max_tokens, max_sequences };
            index += 1;
        }
        sizes
    };

    /// The largest.
    pub(crate) const LARGEST: Self = Self::ALL[Self::ALL.len() - 1];

    /// Whether a pass of this size has room.
    pub(crate) fn has_room_for(self, num_tokens: usize, num_sequences: usize) -> bool {
        num_tokens <= self.max_tokens as usize && num_sequences <= self.max_sequences as usize
    }

    /// Each sequence has a block that is not full, at most.
    fn max_blocks(self) -> u32 {
        self.max_tokens / AttentionBlock::NUM_QUERIES + self.max_sequences
    }
}

/// What a pass is given, as it lies on the device: counts first, then arrays with room for the most of
/// each.
#[derive(Debug, Clone, Copy)]
struct Input {
    start: Address,
    size: Size,
}

/// Words before the arrays: tokens, sequences, blocks, and one to come out even.
const NUM_COUNTS: usize = 4;

impl Input {
    fn num_words(size: Size) -> usize {
        Self { start: Address::NONE, size }.end_of_blocks()
    }

    fn num_tokens(self) -> Address {
        self.word(0)
    }

    fn num_sequences(self) -> Address {
        self.word(1)
    }

    fn num_blocks(self) -> Address {
        self.word(2)
    }

    /// The `index`th of input ids, position ids and token type ids.
    fn ids(self, index: usize) -> usize {
        NUM_COUNTS + index * self.size.max_tokens as usize
    }

    fn cu_seqlens(self) -> usize {
        self.ids(3)
    }

    fn blocks(self) -> usize {
        self.cu_seqlens() + padded(self.size.max_sequences as usize + 1, 2)
    }

    fn end_of_blocks(self) -> usize {
        self.blocks() + 2 * self.size.max_blocks() as usize
    }

    fn word(self, index: usize) -> Address {
        self.start.behind(index * size_of::<u32>())
    }

    /// All of it for `tokens`.
    fn words(self, tokens: &Tokens) -> Vec<u32> {
        let blocks = attention_blocks(&tokens.cu_seqlens);
        let mut words = vec![0; self.blocks() + 2 * blocks.len()];
        let counts = [tokens.num_tokens(), tokens.batch_size(), blocks.len(), 0];
        words[..NUM_COUNTS].copy_from_slice(&counts.map(|count| count as u32));
        let ids = [&tokens.input_ids, &tokens.position_ids, &tokens.token_type_ids];
        for (index, ids) in ids.into_iter().enumerate() {
            words[self.ids(index)..][..ids.len()].copy_from_slice(ids);
        }
        words[self.cu_seqlens()..][..tokens.cu_seqlens.len()].copy_from_slice(&tokens.cu_seqlens);
        words[self.blocks()..].copy_from_slice(bytemuck::cast_slice(&blocks));
        words
    }
}

/// What a pass writes, with room for the largest.
#[derive(Debug)]
pub(crate) struct Workspace {
    input: Address,
    /// `[max_tokens, embedding stride]`; the hidden states, where nothing is between them.
    embeddings: Address,
    /// `[max_tokens, hidden stride]`
    hidden_states: Address,
    query_key_value: Address,
    context: Address,
    intermediate: Address,
    /// What one layer of the head leaves to the next.
    head: [Address; 2],
    /// `f32` `[max_sequences, width]`
    output: Address,
}

impl Workspace {
    pub(crate) fn allocate<D: Device>(
        device: &mut D,
        weights: &Weights<D>,
        width: usize,
    ) -> Result<Self, DeviceError> {
        let Size { max_tokens, max_sequences } = Size::LARGEST;
        let first = &weights.layers[0];
        let mut rows = |num_rows: u32, stride: usize| {
            device.allocate(num_rows as usize * stride * weights.dtype.num_bytes())
        };
        let of_layers = |stride: fn(&weights::Layer) -> usize| {
            weights.layers.iter().map(stride).max().unwrap_or(0)
        };
        let hidden_states = rows(max_tokens, first.query_key_value.in_stride)?;
        let embeddings = match &weights.projection {
            Some(projection) => rows(max_tokens, projection.in_stride)?,
            None => hidden_states,
        };
        let head = weights.head.iter().map(|linear| linear.out_stride).max().unwrap_or(0);
        let context_stride = first.attention_output.in_stride;
        let workspace = Self {
            embeddings,
            hidden_states,
            query_key_value: rows(max_tokens, first.query_key_value.out_stride)?,
            context: rows(max_tokens, context_stride)?,
            intermediate: rows(max_tokens, of_layers(|layer| layer.intermediate.out_stride))?,
            head: [rows(max_sequences, head)?, rows(max_sequences, head)?],
            output: device.allocate(max_sequences as usize * width * size_of::<f32>())?,
            input: device.allocate(Input::num_words(Size::LARGEST) * size_of::<u32>())?,
        };
        // What pads the heads is read, and never written.
        let zeros = vec![0; max_tokens as usize * context_stride * weights.dtype.num_bytes()];
        device.write(workspace.context, &zeros)?;
        Ok(workspace)
    }
}

/// What is read from the last hidden states, and how wide it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Readout {
    pub(crate) pooling: Pooling,
    pub(crate) width: usize,
}

/// A pass of one size, ready to be started.
#[derive(Debug)]
pub(crate) struct Pass<G> {
    input: Input,
    output: Address,
    graph: G,
}

impl<G> Pass<G> {
    /// Prepares the pass over `weights`.
    pub(crate) fn prepare<D: Device<Graph = G>>(
        device: &mut D,
        plan: &Plan<'_, D>,
        size: Size,
    ) -> Result<Self, EngineError> {
        let input = Input { start: plan.workspace.input, size };
        let graph = device.prepare(plan.launches(device, input)?).map_err(failed)?;
        Ok(Self { input, output: plan.workspace.output, graph })
    }

    pub(crate) fn has_room_for(&self, tokens: &Tokens) -> bool {
        self.input.size.has_room_for(tokens.num_tokens(), tokens.batch_size())
    }

    /// A row of `width` for each sequence.
    pub(crate) fn run<D: Device<Graph = G>>(
        &self,
        device: &mut D,
        tokens: &Tokens,
        width: usize,
    ) -> Result<Vec<f32>, DeviceError> {
        let mut rows = vec![0.0; tokens.batch_size() * width];
        device.write(self.input.start, bytemuck::cast_slice(&self.input.words(tokens)))?;
        device.start(&self.graph)?;
        device.read(self.output, bytemuck::cast_slice_mut(&mut rows))?;
        Ok(rows)
    }
}

/// What passes of all sizes share.
#[derive(Debug)]
pub(crate) struct Plan<'a, D> {
    pub(crate) description: &'a Description,
    pub(crate) layout: &'a Layout,
    pub(crate) weights: &'a Weights<D>,
    pub(crate) workspace: &'a Workspace,
    pub(crate) readout: Readout,
}

impl<D: Device> Plan<'_, D> {
    /// The kernels of a pass, in their order.
    fn launches(&self, device: &D, input: Input) -> Result<Vec<Launch>, EngineError> {
        let Self { weights, workspace, .. } = *self;
        let dtype = weights.dtype;
        let Workspace { hidden_states, query_key_value, context, intermediate, .. } = *workspace;
        let max_tokens = input.size.max_tokens;
        let tokens =
            Rows { num_rows: input.num_tokens(), max_rows: max_tokens, places: Address::NONE };
        let normalize = |norm| {
            let (input, output) = (hidden_states, hidden_states);
            Normalize { num_tokens: tokens.num_rows, input, output, norm }.launch(dtype, max_tokens)
        };

        let linear_of = |weights, rows, from, to| self.linear(device, weights, rows, from, to);
        let embeddings = Embeddings {
            num_tokens: tokens.num_rows,
            input_ids: input.word(input.ids(0)),
            position_ids: input.word(input.ids(1)),
            token_type_ids: input.word(input.ids(2)),
            words: weights.word,
            positions: weights.position,
            token_types: weights.token_type,
            hidden_states: workspace.embeddings,
            norm: weights.embedding_norm,
        };
        let mut launches = vec![embeddings.launch(dtype, max_tokens)];
        if let Some(linear) = &weights.projection {
            launches.push(linear_of(
                linear,
                tokens,
                workspace.embeddings,
                To::Rows(hidden_states),
            )?);
        }
        for layer in &weights.layers {
            let weights::Layer { query_key_value: joined, attention_output, output, .. } = layer;
            launches.push(linear_of(joined, tokens, hidden_states, To::Rows(query_key_value))?);
            launches.push(self.attention(input, layer)?);
            launches.push(linear_of(attention_output, tokens, context, To::Added(hidden_states))?);
            launches.push(normalize(layer.attention_norm));
            let to = To::Rows(intermediate);
            launches.push(linear_of(&layer.intermediate, tokens, hidden_states, to)?);
            launches.push(linear_of(output, tokens, intermediate, To::Added(hidden_states))?);
            launches.push(normalize(layer.output_norm));
        }
        launches.extend(self.readout(device, input)?);
        Ok(launches)
    }

    /// From the last hidden states to a row for each sequence.
    fn readout(&self, device: &D, input: Input) -> Result<Vec<Launch>, EngineError> {
        let Workspace { hidden_states, head, output, .. } = *self.workspace;
        let max_rows = input.size.max_sequences;
        let sequences = Rows { num_rows: input.num_sequences(), max_rows, places: Address::NONE };
        let Some((last, others)) = self.weights.head.split_last() else {
            let pool = Pool {
                batch_size: sequences.num_rows,
                cu_seqlens: input.word(input.cu_seqlens()),
                hidden_states,
                embeddings: output,
                stride: self.weights.layers[0].output.out_stride as i64,
                hidden_size: self.readout.width as i32,
                pooling: self.readout.pooling.into(),
            };
            return Ok(vec![pool.launch(self.weights.dtype, max_rows)]);
        };
        // Where a sequence starts is where its first token is.
        let first_tokens = Rows { places: input.word(input.cu_seqlens()), ..sequences };
        let mut from = (first_tokens, hidden_states);
        let mut launches = Vec::new();
        for (layer, to) in others.iter().zip(head.into_iter().cycle()) {
            launches.push(self.linear(device, layer, from.0, from.1, To::Rows(to))?);
            from = (sequences, to);
        }
        launches.push(self.linear(device, last, from.0, from.1, To::Logits(output))?);
        Ok(launches)
    }

    fn linear(
        &self,
        device: &D,
        weights: &weights::Linear,
        rows: Rows,
        from: Address,
        to: To,
    ) -> Result<Launch, EngineError> {
        let (output, residual, logits) = match to {
            To::Rows(output) => (output, Address::NONE, Address::NONE),
            To::Added(output) => (output, output, Address::NONE),
            To::Logits(logits) => (Address::NONE, Address::NONE, logits),
        };
        let linear = Linear {
            num_rows: rows.num_rows,
            input_rows: rows.places,
            input: from,
            weight: weights.weight,
            bias: weights.bias,
            residual,
            output,
            logits,
            in_stride: weights.in_stride as i32,
            out_stride: weights.out_stride as i32,
            out_features: weights.out_features as i32,
            activation: weights.activation,
        };
        linear.choose_launch(device, self.weights.dtype, rows.max_rows).map_err(failed)
    }

    fn attention(&self, input: Input, layer: &weights::Layer) -> Result<Launch, EngineError> {
        let Description { num_heads, head_dim, .. } = *self.description;
        let attention = Attention {
            num_blocks: input.num_blocks(),
            blocks: input.word(input.blocks()),
            cu_seqlens: input.word(input.cu_seqlens()),
            query_key_value: self.workspace.query_key_value,
            position_bias: self.weights.position_bias,
            context: self.workspace.context,
            max_seqlen: self.layout.position.num_rows as i32,
            in_stride: layer.query_key_value.out_stride as i32,
            out_stride: layer.attention_output.in_stride as i32,
            scale: 1.0 / (head_dim as f32).sqrt(),
        };
        let (num_heads, max_blocks) = (num_heads as u32, input.size.max_blocks());
        padded_head_dim(head_dim as u32)
            .and_then(|head_dim| {
                attention.launch(self.weights.dtype, head_dim, num_heads, max_blocks)
            })
            .ok_or_else(|| EngineError::Unsupported {
                reason: format!("heads of {head_dim} elements; there are kernels for up to 128"),
            })
    }
}

/// Which rows a linear layer takes.
#[derive(Debug, Clone, Copy)]
struct Rows {
    num_rows: Address,
    max_rows: u32,
    /// Of each, in the input; row by row, if none.
    places: Address,
}

/// What becomes of what a linear layer gives.
#[derive(Debug, Clone, Copy)]
enum To {
    Rows(Address),
    /// To the rows that are there.
    Added(Address),
    Logits(Address),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_room_for_more_than_the_one_before() {
        for pair in Size::ALL.windows(2) {
            assert!(pair[0].max_tokens < pair[1].max_tokens, "{pair:?}");
            assert!(pair[0].max_sequences <= pair[1].max_sequences, "{pair:?}");
        }
        assert_eq!(Size::LARGEST, Size { max_tokens: 16_384, max_sequences: 2048 });
    }

    #[test]
    fn there_is_room_for_the_blocks_of_any_batch_that_fits() {
        for size in Size::ALL {
            let num_sequences = size.max_sequences;
            // All as long as leaves the most blocks that are not full.
            let seq_len = size.max_tokens / num_sequences;
            for long in [seq_len, size.max_tokens - (num_sequences - 1)] {
                let mut cu_seqlens = vec![0, long];
                for _ in 1..num_sequences {
                    let next =
                        cu_seqlens[cu_seqlens.len() - 1] + if long == seq_len { long } else { 1 };
                    cu_seqlens.push(next);
                }
                let num_blocks = attention_blocks(&cu_seqlens).len();
                assert!(num_blocks <= size.max_blocks() as usize, "{size:?}, {long}: {num_blocks}");
            }
        }
    }

    #[test]
    fn arrays_of_the_input_do_not_overlap() {
        let tokens = Tokens {
            input_ids: vec![5, 6, 7],
            position_ids: vec![0, 1, 0],
            token_type_ids: vec![1, 1, 0],
            cu_seqlens: vec![0, 2, 3],
        };
        let input = Input { start: Address(4096), size: Size::ALL[0] };
        let words = input.words(&tokens);
        assert_eq!(words[..4], [3, 2, 2, 0]);
        for (index, ids) in [[5, 6, 7], [0, 1, 0], [1, 1, 0]].iter().enumerate() {
            assert_eq!(words[input.ids(index)..][..3], *ids);
        }
        assert_eq!(words[input.cu_seqlens()..][..3], [0, 2, 3]);
        // The longer sequence first.
        assert_eq!(words[input.blocks()..], [0, 0, 1, 0]);
        assert_eq!(input.word(input.blocks()).0 % 8, 0);
        assert!(words.len() <= Input::num_words(input.size));
    }
}
