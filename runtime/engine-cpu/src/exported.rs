//! A transformer encoder as a description: what is computed, in which order, with which weights.

use encoder::Activation;
use tract_onnx::pb::ModelProto;

/// A post-LayerNorm transformer encoder with its weights, as it was exported.
///
/// ```text
/// embeddings ──> layers, each: attention ─> +, LayerNorm ─> feed-forward ─> +, LayerNorm ──> head
/// ```
#[derive(Debug)]
pub(crate) struct Encoder {
    pub(crate) embeddings: Embeddings,
    pub(crate) layers: Vec<Layer>,
    /// Attention heads of every layer; `head_dim` is `query.out_features / num_heads`.
    pub(crate) num_heads: usize,
    /// What is added to the attention scores of every layer by distance (MPNet).
    pub(crate) position_bias: Option<PositionBias>,
    pub(crate) head: Head,
}

/// The sum of three look-ups, normalized, and projected where `hidden_size` differs (ELECTRA).
#[derive(Debug)]
pub(crate) struct Embeddings {
    /// `[vocab_size, embedding_size]`
    pub(crate) word: Table,
    /// `[max_position_embeddings, embedding_size]`, as exported: `positions` says which row is
    /// the first token's.
    pub(crate) position: Table,
    pub(crate) positions: Positions,
    /// `[type_vocab_size, embedding_size]`; one row where every token has it, whatever its type.
    pub(crate) token_type: Option<Table>,
    pub(crate) norm: LayerNorm,
    pub(crate) projection: Option<Linear>,
}

/// How a token finds its row of the position table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Positions {
    /// The first token of a sequence has row 0 (BERT).
    FromZero,
    /// Tokens other than `padding_idx` count from `padding_idx + 1`; padding has row `padding_idx`
    /// (RoBERTa).
    AfterPadding {
        /// The id of the padding token.
        padding_idx: u32,
    },
}

/// One block of the encoder.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) attention_norm: LayerNorm,
    pub(crate) intermediate: Linear,
    pub(crate) activation: Activation,
    pub(crate) output: Linear,
    pub(crate) output_norm: LayerNorm,
}

/// A learned bias of the attention scores by relative position, shared by all layers.
#[derive(Debug)]
pub(crate) struct PositionBias {
    /// `[num_buckets, num_heads]`
    pub(crate) table: Table,
    /// Distances of this and more share the last bucket.
    pub(crate) max_distance: usize,
}

/// What becomes of the last hidden states.
#[derive(Debug)]
pub(crate) enum Head {
    /// They are the answer, `[num_tokens, hidden_size]`.
    HiddenStates,
    /// The first token's go through these layers, one behind the other.
    FirstToken(Vec<(Linear, Activation)>),
    /// The rest of the graph, for tract: takes `hidden_states` `[1, seq_len, hidden_size]` and
    /// whichever of `input_ids`, `attention_mask`, `token_type_ids` `[1, seq_len]` it still needs.
    Graph(Box<ModelProto>),
}

/// `weight · x + bias`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Linear {
    /// `[out_features, in_features]`
    pub(crate) weight: Vec<f32>,
    /// `[out_features]`
    pub(crate) bias: Vec<f32>,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) epsilon: f32,
}

/// Rows to look up, `[num_rows, width]`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    pub(crate) values: Vec<f32>,
    pub(crate) num_rows: usize,
    pub(crate) width: usize,
}

#[cfg(test)]
impl Encoder {
    /// A made-up encoder of two layers and two heads that classifies, the same on each run.
    pub(crate) fn made_up() -> Self {
        let (hidden_size, intermediate_size, vocab_size) = (40, 72, 30);
        let mut state = 7u64;
        let mut numbers = |len: usize, scale: f32| -> Vec<f32> {
            let number = |_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                scale * ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            };
            (0..len).map(number).collect()
        };
        let mut table = |num_rows| Table {
            values: numbers(num_rows * hidden_size, 1.0),
            num_rows,
            width: hidden_size,
        };
        let (word, position, token_type) = (table(vocab_size), table(64), table(2));
        let mut linear = |out_features, in_features| Linear {
            weight: numbers(out_features * in_features, 0.3),
            bias: numbers(out_features, 0.1),
            in_features,
            out_features,
        };
        let norm = || LayerNorm {
            weight: vec![1.0; hidden_size],
            bias: vec![0.0; hidden_size],
            epsilon: 1e-12,
        };
        let mut layer = || Layer {
            query: linear(hidden_size, hidden_size),
            key: linear(hidden_size, hidden_size),
            value: linear(hidden_size, hidden_size),
            attention_output: linear(hidden_size, hidden_size),
            attention_norm: norm(),
            intermediate: linear(intermediate_size, hidden_size),
            activation: Activation::Gelu,
            output: linear(hidden_size, intermediate_size),
            output_norm: norm(),
        };
        let layers = vec![layer(), layer()];
        Self {
            embeddings: Embeddings {
                word,
                position,
                positions: Positions::FromZero,
                token_type: Some(token_type),
                norm: norm(),
                projection: None,
            },
            layers,
            num_heads: 2,
            position_bias: None,
            head: Head::FirstToken(vec![
                (linear(hidden_size, hidden_size), Activation::Tanh),
                (linear(3, hidden_size), Activation::Identity),
            ]),
        }
    }
}
