//! The parts every encoder is made of, in each of the ways exporters write them.

use super::{
    graph::{Node, OnnxGraph},
    tensor::Tensor,
};
use crate::exported::{LayerNorm, Linear, Table};

/// A LayerNorm of the graph.
#[derive(Debug)]
pub(super) struct Norm<'m> {
    pub(super) norm: LayerNorm,
    pub(super) input: &'m str,
    pub(super) output: &'m str,
}

/// Every LayerNorm over the last axis, in order of computation.
pub(super) fn norms<'m>(graph: &OnnxGraph<'m>) -> Vec<Norm<'m>> {
    let nodes = graph.proto.node.iter().map(Node);
    nodes
        .filter_map(|node| norm_operator(graph, node).or_else(|| norm_parts(graph, node)))
        .collect()
}

fn norm_operator<'m>(graph: &OnnxGraph<'m>, node: Node<'m>) -> Option<Norm<'m>> {
    if node.op() != "LayerNormalization" || !is_last_axis(node.int("axis").unwrap_or(-1)) {
        return None;
    }
    let weight = graph.constant(node.input(1)?)?.values;
    let bias = match node.input(2) {
        Some(bias) => graph.constant(bias)?.values,
        None => vec![0.0; weight.len()],
    };
    let epsilon = node.float("epsilon").unwrap_or(1e-5);
    norm(weight, bias, epsilon, node.input(0)?, node)
}

/// `centered / sqrt(mean(centered²) + epsilon) * weight + bias`, bottom up.
fn norm_parts<'m>(graph: &OnnxGraph<'m>, last: Node<'m>) -> Option<Norm<'m>> {
    if last.op() != "Add" {
        return None;
    }
    let (scaled, bias) = graph.constant_operand(last)?;
    let (normalized, weight) = graph.constant_operand(graph.node_of(scaled, "Mul")?)?;
    let quotient = graph.node(graph.source(normalized))?;
    let (dividend, divisor) = (quotient.input(0)?, quotient.input(1)?);
    let (centered, deviation) = match quotient.op() {
        "Div" => (dividend, divisor),
        "Mul" => [(dividend, divisor), (divisor, dividend)].into_iter().find_map(
            |(centered, inverse)| Some((centered, graph.node_of(inverse, "Reciprocal")?.input(0)?)),
        )?,
        _ => return None,
    };
    let sum = graph.node_of(graph.node_of(deviation, "Sqrt")?.input(0)?, "Add")?;
    let (variance, epsilon) = graph.constant_operand(sum)?;
    let square = graph.node(graph.source(mean(graph, variance)?))?;
    let is_square = match square.op() {
        "Pow" => graph.scalar(square.input(1)?, None) == Some(2.0),
        "Mul" => graph.source(square.input(0)?) == graph.source(square.input(1)?),
        _ => false,
    };
    let input = centered_input(graph, centered)?;
    if !is_square || centered_input(graph, square.input(0)?)? != input {
        return None;
    }
    let (weight, bias) = (graph.constant(weight)?.values, graph.constant(bias)?.values);
    norm(weight, bias, graph.scalar(epsilon, None)?, input, last)
}

fn norm<'m>(
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
    input: &'m str,
    last: Node<'m>,
) -> Option<Norm<'m>> {
    let norm = LayerNorm { weight, bias, epsilon };
    (norm.weight.len() == norm.bias.len()).then_some(Norm { norm, input, output: last.output()? })
}

/// The `x` of `x - mean(x)`.
fn centered_input<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Option<&'m str> {
    let difference = graph.node_of(tensor, "Sub")?;
    let input = graph.source(difference.input(0)?);
    (graph.source(mean(graph, difference.input(1)?)?) == input).then_some(input)
}

/// What is averaged over the last axis.
fn mean<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Option<&'m str> {
    let node = graph.node_of(tensor, "ReduceMean")?;
    let axes = match node.attribute("axes") {
        Some(axes) => axes.ints.clone(),
        None => graph.constant(node.input(1)?)?.integers(),
    };
    matches!(axes[..], [axis] if is_last_axis(axis)).then_some(node.input(0)?)
}

/// Of hidden states, `[batch_size, seq_len, hidden_size]`.
fn is_last_axis(axis: i64) -> bool {
    matches!(axis, -1 | 2)
}

/// The linear layer that makes `tensor`, and its input.
pub(super) fn linear<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Option<(Linear, &'m str)> {
    let (mut linear, scale, input) = scaled_linear(graph, tensor, None)?;
    scale_linear(&mut linear, scale);
    Some((linear, input))
}

/// Makes `linear` answer `factor` times as much.
pub(super) fn scale_linear(linear: &mut Linear, factor: f32) {
    if factor != 1.0 {
        linear.weight.iter_mut().chain(&mut linear.bias).for_each(|value| *value *= factor);
    }
}

/// The linear layer and the number it is multiplied with that make `tensor`, and its input.
///
/// The number may come from shapes that end in `head_dim`.
pub(super) fn scaled_linear<'m>(
    graph: &OnnxGraph<'m>,
    tensor: &'m str,
    head_dim: Option<usize>,
) -> Option<(Linear, f32, &'m str)> {
    // `tensor` is always `scale * (x + shift)`, for an `x` ever further up.
    let (mut tensor, mut scale, mut shift) = (graph.source(tensor), 1.0, None::<Vec<f32>>);
    loop {
        let node = graph.node(tensor)?;
        let (x, y) = (node.input(0)?, node.input(1)?);
        let (product, weight, bias) = match node.op() {
            "MatMul" => (x, graph.constant(y)?.transposed(&[1, 0])?, None),
            "Gemm" => gemm(graph, node)?,
            "Add" if shift.is_none() => {
                let (x, bias) = graph.constant_operand(node)?;
                shift = Some(graph.constant(bias)?.values);
                tensor = graph.source(x);
                continue;
            }
            "Mul" | "Div" if shift.is_none() => {
                let (x, factor) = factor(graph, node, head_dim)?;
                scale *= factor;
                tensor = graph.source(x);
                continue;
            }
            _ => return None,
        };
        let [out_features, in_features] = weight.shape[..] else { return None };
        let bias = match (bias, shift) {
            (Some(bias), None) | (None, Some(bias)) => bias,
            (None, None) => vec![0.0; out_features],
            (Some(_), Some(_)) => return None,
        };
        let linear = Linear { weight: weight.values, bias, in_features, out_features };
        let fits = linear.bias.len() == out_features && out_features * in_features > 0;
        return fits.then_some((linear, scale, graph.source(product)));
    }
}

/// The input, the weight `[out_features, in_features]` and the bias of a `Gemm`.
fn gemm<'m>(graph: &OnnxGraph<'m>, node: Node<'m>) -> Option<(&'m str, Tensor, Option<Vec<f32>>)> {
    let factor = |name| node.float(name).unwrap_or(1.0);
    let (alpha, beta) = (factor("alpha"), factor("beta"));
    if node.int("transA").unwrap_or(0) != 0 {
        return None;
    }
    let weight = graph.constant(node.input(1)?)?;
    let weight = match node.int("transB").unwrap_or(0) {
        0 => weight.transposed(&[1, 0])?,
        _ => weight,
    };
    let bias = match node.input(2) {
        Some(bias) => Some(graph.constant(bias)?.map(|value| beta * value).values),
        None => None,
    };
    Some((node.input(0)?, weight.map(|value| alpha * value), bias))
}

/// The other operand of a multiplication with one number, and this number.
pub(super) fn factor<'m>(
    graph: &OnnxGraph<'m>,
    node: Node<'m>,
    head_dim: Option<usize>,
) -> Option<(&'m str, f32)> {
    let (a, b) = (node.input(0)?, node.input(1)?);
    let number = |tensor| graph.scalar(tensor, head_dim);
    match node.op() {
        "Mul" => match number(b) {
            Some(factor) => Some((a, factor)),
            None => Some((b, number(a)?)),
        },
        "Div" => Some((a, number(b)?.recip())),
        _ => None,
    }
}

/// The table whose rows make `tensor`, and the indices of these rows.
pub(super) fn lookup<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Option<(Table, &'m str)> {
    let node = graph.node(graph.source(tensor))?;
    let (gather, scales) = match node.op() {
        "Gather" => (node, None),
        // The rows of a packed table are unpacked after they are looked up.
        "DequantizeLinear" => (graph.node_of(node.input(0)?, "Gather")?, Some(node)),
        _ => return None,
    };
    if gather.int("axis").unwrap_or(0) != 0 {
        return None;
    }
    let mut table = graph.constant(gather.input(0)?)?;
    if let Some(node) = scales {
        let zero_point = match node.input(2) {
            Some(zero_point) => Some(graph.constant(zero_point)?),
            None => None,
        };
        let is_last_axis = is_last_axis(node.int("axis").unwrap_or(1));
        let scale = graph
            .constant(node.input(1)?)
            .filter(|scale| is_last_axis || scale.values.len() == 1)?;
        table = table.dequantized(scale, zero_point, -1)?;
    }
    let [num_rows, width] = table.shape[..] else { return None };
    Some((Table { values: table.values, num_rows, width }, gather.input(1)?))
}
