//! Self-attention, written out or as one operator.

use std::collections::HashSet;

use super::{
    Unrecognized,
    graph::{Node, OnnxGraph},
    pattern::{factor, lookup, scale_linear, scaled_linear},
};
use crate::exported::{Linear, Table};

/// Attention whose scores are `query · key / √head_dim`, plus a bias by position.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) query: Linear,
    pub(super) key: Linear,
    pub(super) value: Linear,
    pub(super) num_heads: usize,
    /// `[num_buckets, num_heads]`
    pub(super) bias_table: Option<Table>,
}

/// The attention over `hidden_states` that makes `context`.
///
/// `dependents` are all tensors that depend on the embeddings.
pub(super) fn find<'m>(
    graph: &OnnxGraph<'m>,
    dependents: &HashSet<&'m str>,
    context: &'m str,
    hidden_states: &'m str,
) -> Result<Attention, Unrecognized> {
    let product = product(graph, context).ok_or_else(|| {
        Unrecognized::new("no softmax(scores) · values goes into the linear layer")
    })?;
    let (mut value, value_scale, value_input) = scaled_linear(graph, product.value, None)
        .ok_or_else(|| Unrecognized::new("the values are not a linear layer"))?;
    scale_linear(&mut value, value_scale);
    let num_heads = product
        .num_heads
        .or_else(|| num_heads(graph, product.value, value.out_features))
        .ok_or_else(|| Unrecognized::new("the number of heads does not stand in the graph"))?;
    let head_dim = value.out_features / num_heads;

    let scores = match product.scores {
        Before::Softmax(tensor) => read_scores(graph, dependents, tensor, head_dim)?,
        Before::Operator(scores) => scores,
    };
    let (mut query, query_scale, query_input) = scaled_linear(graph, scores.query, Some(head_dim))
        .ok_or_else(|| Unrecognized::new("the queries are not a linear layer"))?;
    let (key, key_scale, key_input) = scaled_linear(graph, scores.key, Some(head_dim))
        .ok_or_else(|| Unrecognized::new("the keys are not a linear layer"))?;
    if [query_input, key_input, value_input].iter().any(|&input| input != hidden_states) {
        return Err(Unrecognized::new("the attention is not over the hidden states alone"));
    }
    let standard_scale = (head_dim as f32).sqrt().recip();
    let scale = scores.scale.unwrap_or(standard_scale) * query_scale * key_scale;
    if !(scale.is_finite() && scale != 0.0) {
        return Err(Unrecognized::new(format!("the scores are scaled by {scale}")));
    }
    if (scale / standard_scale - 1.0).abs() > 1e-6 {
        scale_linear(&mut query, scale / standard_scale);
    }
    let bias_table = bias_table(graph, &scores.terms, num_heads)?;
    Ok(Attention { query, key, value, num_heads, bias_table })
}

/// `softmax(scores) · value`
struct Product<'m> {
    value: &'m str,
    scores: Before<'m>,
    num_heads: Option<usize>,
}

/// The scores, by what turns them into weights of the values.
enum Before<'m> {
    Softmax(&'m str),
    Operator(Scores<'m>),
}

/// `scale * query · key + terms`
struct Scores<'m> {
    query: &'m str,
    key: &'m str,
    /// `None` for `1 / √head_dim`.
    scale: Option<f32>,
    /// Masks and biases, each with what it is multiplied with.
    terms: Vec<(&'m str, f32)>,
}

fn product<'m>(graph: &OnnxGraph<'m>, context: &'m str) -> Option<Product<'m>> {
    let node = graph.node(graph.source(context))?;
    match node.op() {
        "MatMul" => {
            let softmax = softmax(graph, node.input(0)?)?;
            let scores = Before::Softmax(softmax.input(0)?);
            Some(Product { value: node.input(1)?, scores, num_heads: None })
        }
        "Attention" => {
            let is_plain = |name| node.int(name).unwrap_or(0) == 0;
            let is_softcapped = node.float("softcap").unwrap_or(0.0) != 0.0;
            let num_heads = node.int("q_num_heads").unwrap_or(0);
            if !is_plain("is_causal")
                || is_softcapped
                || node.int("kv_num_heads").unwrap_or(0) != num_heads
                || (4..7).any(|index| node.input(index).is_some())
            {
                return None;
            }
            let scores = Scores {
                query: node.input(0)?,
                key: node.input(1)?,
                scale: node.float("scale"),
                terms: node.input(3).map(|mask| (mask, 1.0)).into_iter().collect(),
            };
            let num_heads = usize::try_from(num_heads).ok().filter(|&num_heads| num_heads > 0);
            let scores = Before::Operator(scores);
            Some(Product { value: node.input(2)?, scores, num_heads })
        }
        _ => None,
    }
}

/// The softmax over keys, also behind the guard `isnan(softmax) ? 0 : softmax` of SDPA.
fn softmax<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Option<Node<'m>> {
    let node = graph.node(graph.source(tensor))?;
    let softmax = match node.op() {
        "Where" => {
            let is_nan = graph.node_of(node.input(0)?, "IsNaN")?;
            let guarded = graph.source(node.input(2)?);
            let same = graph.source(is_nan.input(0)?) == guarded;
            graph.node_of(guarded, "Softmax").filter(|_| same)?
        }
        "Softmax" => node,
        _ => return None,
    };
    matches!(softmax.int("axis").unwrap_or(-1), -1 | 3).then_some(softmax)
}

/// Follows `scores` up to `query · key`, past what scales it and what is added to it.
fn read_scores<'m>(
    graph: &OnnxGraph<'m>,
    dependents: &HashSet<&'m str>,
    scores: &'m str,
    head_dim: usize,
) -> Result<Scores<'m>, Unrecognized> {
    let unknown = || Unrecognized::new("the scores are not queries · keys plus a mask");
    let is_dependent = |tensor: &str| dependents.contains(tensor);
    let (mut tensor, mut scale, mut terms) = (graph.source(scores), 1.0, Vec::new());
    loop {
        let node = graph.node(tensor).ok_or_else(unknown)?;
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return Err(unknown()) };
        let next = match node.op() {
            "MatMul" => return Ok(Scores { query: a, key: b, scale: Some(scale), terms }),
            "Mul" | "Div" => {
                let (next, factor) = factor(graph, node, Some(head_dim)).ok_or_else(unknown)?;
                scale *= factor;
                next
            }
            "Add" => {
                let (next, term) = if is_dependent(a) { (a, b) } else { (b, a) };
                if is_dependent(term) {
                    return Err(Unrecognized::new("hidden states are added to the scores"));
                }
                terms.push((term, scale));
                next
            }
            // `masked ? -inf : scores`, or the other way round.
            "Where" => {
                let c = node.input(2).ok_or_else(unknown)?;
                match (is_dependent(a), is_dependent(b), is_dependent(c)) {
                    (false, true, false) => b,
                    (false, false, true) => c,
                    _ => return Err(unknown()),
                }
            }
            _ => return Err(unknown()),
        };
        tensor = graph.source(next);
    }
}

/// The bias by position among `terms`: the only one that rows of a table of floats go into.
fn bias_table<'m>(
    graph: &OnnxGraph<'m>,
    terms: &[(&'m str, f32)],
    num_heads: usize,
) -> Result<Option<Table>, Unrecognized> {
    let mut tables = terms.iter().filter_map(|&(term, scale)| {
        let nodes = graph.ancestors(term);
        let (mut table, _) = nodes.into_iter().find_map(|node| {
            lookup(graph, node.output()?).filter(|(table, _)| table.width == num_heads)
        })?;
        table.values.iter_mut().for_each(|value| *value *= scale);
        Some(table)
    });
    let first = tables.next();
    match tables.next() {
        None => Ok(first),
        Some(_) => Err(Unrecognized::new("two tables of biases are added to the scores")),
    }
}

/// From the shape `[.., num_heads, head_dim]` that `tensor` had when it left its linear layer.
fn num_heads<'m>(graph: &OnnxGraph<'m>, mut tensor: &'m str, out_features: usize) -> Option<usize> {
    let mut found = None;
    let end = graph.source(tensor);
    while tensor != end {
        let node = graph.node(tensor)?;
        if node.op() == "Reshape" {
            let heads = match split_shape(graph, node.input(1)?) {
                Some((Some(num_heads), _)) => Some(num_heads),
                Some((None, Some(head_dim))) => out_features.checked_div(head_dim),
                _ => None,
            };
            found = heads.or(found);
        }
        tensor = node.input(0)?;
    }
    found.filter(|&num_heads| num_heads > 0 && out_features.is_multiple_of(num_heads))
}

/// The last two lengths of a shape of four, as far as they are constant.
fn split_shape<'m>(
    graph: &OnnxGraph<'m>,
    shape: &'m str,
) -> Option<(Option<usize>, Option<usize>)> {
    let lengths = match graph.constant(shape) {
        Some(shape) => shape.integers(),
        None => {
            let parts = graph.node_of(shape, "Concat")?;
            // A part that is not constant is one length.
            let part =
                |name: &String| graph.constant(name).map_or(vec![-1], |part| part.integers());
            parts.0.input.iter().flat_map(part).collect()
        }
    };
    let [_, _, num_heads, head_dim] = lengths[..] else { return None };
    let positive = |length: i64| usize::try_from(length).ok().filter(|&length| length > 0);
    Some((positive(num_heads), positive(head_dim)))
}
