//! Finds a transformer encoder in an ONNX graph, whoever exported it.
//!
//! Exporters write the same model in many ways. They all agree on what is multiplied with what, so
//! the walk looks for that and skips what only moves numbers (casts, reshapes, transposes):
//!
//! ```text
//! ModelProto ──> OnnxGraph ──> embeddings ──> attention ──> feed-forward ──> head ──> Encoder
//!                (graph)                          ↑               │
//!                                                 └─ each layer ──┘
//! ```
//!
//! `pattern` and `activation` know the parts of these, `constant` and `tensor` the numbers in them.
//!
//! # Invariants
//!
//! - Strict about constants (weights, epsilons, scales), liberal about shapes: the caller runs what
//!   is recognized against the graph itself and believes only equal answers.
//! - Any graph gives an answer: no panic, no recursion without a limit, no tensor larger than those
//!   in the file.

mod activation;
mod attention;
mod constant;
mod embeddings;
mod graph;
mod head;
mod pattern;
mod tensor;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt};

use graph::OnnxGraph;
use pattern::Norm;
use tract_onnx::pb::ModelProto;

use crate::exported::{Encoder, Layer, PositionBias, Table};

/// MPNet's. Its graphs hold only a logarithm of it.
const MAX_DISTANCE: usize = 128;

/// Why a graph is not taken for a transformer encoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unrecognized {
    pub(crate) reason: String,
}

impl Unrecognized {
    fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

impl fmt::Display for Unrecognized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Unrecognized {}

/// The encoder that `model` computes, and what becomes of its first output.
///
/// # Errors
///
/// [`Unrecognized`] if the graph has no embeddings or no layer as BERT has them, if a layer that
/// starts like one goes on differently, or if a size or constant does not fit the rest.
pub(crate) fn recognize(model: &ModelProto) -> Result<Encoder, Unrecognized> {
    let graph = OnnxGraph::index(model)?;
    let norms = pattern::norms(&graph);
    let (embeddings, first) = embeddings::find(&graph, &norms)?;
    let dependents = graph.dependents(first);

    let mut hidden_states = first;
    let mut layers = Vec::new();
    let mut num_heads = 0;
    let mut bias_table = None;
    while let Some(block) = find_block(&graph, &norms, &dependents, hidden_states)
        .map_err(|why| Unrecognized::new(format!("layer {}: {why}", layers.len())))?
    {
        if layers.is_empty() {
            (num_heads, bias_table) = (block.num_heads, block.bias_table);
        } else if num_heads != block.num_heads || bias_table != block.bias_table {
            return Err(Unrecognized::new("layers differ in their heads or their position bias"));
        }
        hidden_states = block.output;
        layers.push(block.layer);
    }
    if layers.is_empty() {
        return Err(Unrecognized::new("no layer adds to the embeddings and normalizes the sum"));
    }
    let hidden_size = layers.last().map_or(0, |layer: &Layer| layer.output.out_features);
    let head = head::find(model, &graph, &dependents, hidden_states, hidden_size)?;
    let encoder = Encoder {
        embeddings,
        layers,
        num_heads,
        position_bias: bias_table.map(|table| PositionBias { table, max_distance: MAX_DISTANCE }),
        head,
    };
    check_sizes(&encoder)?;
    Ok(encoder)
}

/// One layer of the encoder, and what all layers must agree on.
struct Block<'m> {
    layer: Layer,
    num_heads: usize,
    bias_table: Option<Table>,
    /// The tensor of the layer's hidden states.
    output: &'m str,
}

/// The layer that takes `hidden_states`; `None` where they go elsewhere.
fn find_block<'m>(
    graph: &OnnxGraph<'m>,
    norms: &[Norm<'m>],
    dependents: &HashSet<&'m str>,
    hidden_states: &'m str,
) -> Result<Option<Block<'m>>, Unrecognized> {
    let Some((attention_norm, branch)) = residual(graph, norms, hidden_states) else {
        return Ok(None);
    };
    let (attention_output, context) = pattern::linear(graph, branch)
        .ok_or_else(|| Unrecognized::new("what is added first is not a linear layer"))?;
    let attention = attention::find(graph, dependents, context, hidden_states)?;

    let attended = attention_norm.output;
    let (output_norm, branch) = residual(graph, norms, attended)
        .ok_or_else(|| Unrecognized::new("no feed-forward part follows the attention"))?;
    let (output, activated) = pattern::linear(graph, branch)
        .ok_or_else(|| Unrecognized::new("the feed-forward part does not end in a linear layer"))?;
    let (activation, inner) = activation::find(graph, activated)
        .ok_or_else(|| Unrecognized::new("the activation is none of gelu, relu, tanh"))?;
    let (intermediate, _) =
        pattern::linear(graph, inner).filter(|&(_, input)| input == attended).ok_or_else(|| {
            Unrecognized::new("the feed-forward part does not start with a linear layer")
        })?;
    let layer = Layer {
        query: attention.query,
        key: attention.key,
        value: attention.value,
        attention_output,
        attention_norm: attention_norm.norm.clone(),
        intermediate,
        activation,
        output,
        output_norm: output_norm.norm.clone(),
    };
    let (num_heads, bias_table) = (attention.num_heads, attention.bias_table);
    Ok(Some(Block { layer, num_heads, bias_table, output: output_norm.output }))
}

/// The LayerNorm over `hidden_states` plus something, and this something.
fn residual<'n, 'm>(
    graph: &OnnxGraph<'m>,
    norms: &'n [Norm<'m>],
    hidden_states: &str,
) -> Option<(&'n Norm<'m>, &'m str)> {
    norms.iter().find_map(|norm| {
        let (a, b) = graph.summands(norm.input)?;
        match (graph.source(a) == hidden_states, graph.source(b) == hidden_states) {
            (true, false) => Some((norm, b)),
            (false, true) => Some((norm, a)),
            _ => None,
        }
    })
}

/// Every width that two parts share must be the same on both sides.
fn check_sizes(encoder: &Encoder) -> Result<(), Unrecognized> {
    let embeddings = &encoder.embeddings;
    let embedding_size = embeddings.word.width;
    let same_width = |table: &Table| table.width == embedding_size;
    let hidden_size =
        embeddings.projection.as_ref().map_or(embedding_size, |linear| linear.out_features);
    if !same_width(&embeddings.position)
        || !embeddings.token_type.iter().all(same_width)
        || embeddings.norm.weight.len() != embedding_size
        || embeddings.projection.iter().any(|linear| linear.in_features != embedding_size)
    {
        return Err(Unrecognized::new("the embeddings differ in width"));
    }
    let fits = |layer: &Layer| {
        let attention_size = layer.query.out_features;
        let intermediate_size = layer.intermediate.out_features;
        attention_size.is_multiple_of(encoder.num_heads.max(1))
            && [&layer.query, &layer.key, &layer.value].iter().all(|linear| {
                (linear.in_features, linear.out_features) == (hidden_size, attention_size)
            })
            && layer.attention_output.in_features == attention_size
            && layer.attention_output.out_features == hidden_size
            && layer.attention_norm.weight.len() == hidden_size
            && layer.intermediate.in_features == hidden_size
            && layer.output.in_features == intermediate_size
            && layer.output.out_features == hidden_size
            && layer.output_norm.weight.len() == hidden_size
    };
    if !encoder.layers.iter().all(fits) {
        return Err(Unrecognized::new("the parts of a layer differ in width"));
    }
    Ok(())
}
