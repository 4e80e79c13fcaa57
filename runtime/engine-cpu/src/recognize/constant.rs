//! Constants of an ONNX graph, computed where the file holds them packed, turned or in parts.

use std::iter;

use super::{
    graph::{Node, OnnxGraph},
    tensor::{Tensor, is_float, is_integer},
};

/// What it takes to compute a tensor from initializers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cost {
    /// Operators to run, a shared one once for each use.
    num_ops: usize,
    /// Whether the shape of a tensor that is no constant is needed too.
    needs_shape: bool,
}

impl Cost {
    /// Keeps a broken file from costing more than its size.
    const MAX_OPS: usize = 64;

    /// The cost of what `node` makes; `None` if one of its inputs has none, or it is too high.
    pub(super) fn of(node: Node<'_>, inputs: impl Iterator<Item = Option<Self>>) -> Option<Self> {
        let own = Self { num_ops: 1, needs_shape: node.op() == "Shape" };
        let total = match node.op() {
            "Shape" => own,
            "Constant" | "Identity" | "Dropout" | "Cast" | "Transpose" | "Reshape" | "Squeeze"
            | "Unsqueeze" | "DequantizeLinear" | "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Sqrt"
            | "Reciprocal" | "Gather" | "Slice" => {
                iter::once(Some(own)).chain(inputs).try_fold(Self::default(), |total, cost| {
                    let cost = cost?;
                    let needs_shape = total.needs_shape || cost.needs_shape;
                    Some(Self { num_ops: total.num_ops + cost.num_ops, needs_shape })
                })?
            }
            _ => return None,
        };
        (total.num_ops <= Self::MAX_OPS).then_some(total)
    }
}

impl OnnxGraph<'_> {
    /// Whether `tensor` depends on no input, not even on its shape.
    pub(super) fn is_constant(&self, tensor: &str) -> bool {
        self.cost(tensor).is_some_and(|cost| !cost.needs_shape)
    }

    /// The value of `tensor`, if it is constant.
    pub(super) fn constant(&self, tensor: &str) -> Option<Tensor> {
        if self.is_constant(tensor) { self.evaluate(tensor, None) } else { None }
    }

    /// The only number in `tensor`, if it is constant but for shapes of other tensors: these
    /// count as `[.., head_dim]`.
    pub(super) fn scalar(&self, tensor: &str, head_dim: Option<usize>) -> Option<f32> {
        if self.initializer(tensor).is_some_and(|proto| proto.dims.iter().any(|&dim| dim != 1)) {
            return None;
        }
        self.cost(tensor)?;
        match self.evaluate(tensor, head_dim)?.values[..] {
            [value] if !value.is_nan() => Some(value),
            _ => None,
        }
    }

    /// Goes no deeper than [`Cost::MAX_OPS`]: whoever calls it has seen that `tensor` has a cost.
    fn evaluate(&self, tensor: &str, head_dim: Option<usize>) -> Option<Tensor> {
        if let Some(proto) = self.initializer(tensor) {
            return Tensor::decode(proto);
        }
        let node = self.node(tensor)?;
        let input = |index: usize| self.evaluate(node.input(index)?, head_dim);
        // An attribute until opset 12, then an input that may be left out.
        let axes = || match (node.attribute("axes"), node.input(1)) {
            (Some(attribute), _) => Some(attribute.ints.clone()),
            (None, Some(_)) => Some(input(1)?.integers()),
            (None, None) => None,
        };
        match node.op() {
            "Constant" => value_of(node),
            "Shape" => Some(Tensor::vector(vec![f32::NAN, f32::NAN, f32::NAN, head_dim? as f32])),
            "Identity" | "Dropout" => input(0),
            "Cast" if node.int("to").is_some_and(is_float) => input(0),
            "Cast" if node.int("to").is_some_and(is_integer) => Some(input(0)?.map(f32::trunc)),
            "Transpose" => {
                let tensor = input(0)?;
                let reversed = || (0..tensor.shape.len() as i64).rev().collect();
                let perm = node.attribute("perm").map_or_else(reversed, |perm| perm.ints.clone());
                tensor.transposed(&perm)
            }
            "Reshape" => input(0)?.reshaped(&input(1)?.integers()),
            "Squeeze" => input(0)?.squeezed(axes().as_deref()),
            "Unsqueeze" => input(0)?.unsqueezed(&axes()?),
            "DequantizeLinear" => {
                input(0)?.dequantized(input(1)?, input(2), node.int("axis").unwrap_or(1))
            }
            "Add" => input(0)?.zip(&input(1)?, |a, b| a + b),
            "Sub" => input(0)?.zip(&input(1)?, |a, b| a - b),
            "Mul" => input(0)?.zip(&input(1)?, |a, b| a * b),
            "Div" => input(0)?.zip(&input(1)?, |a, b| a / b),
            "Pow" => input(0)?.zip(&input(1)?, f32::powf),
            "Sqrt" => Some(input(0)?.map(f32::sqrt)),
            "Reciprocal" => Some(input(0)?.map(f32::recip)),
            "Gather" => input(0)?.gathered(input(1)?),
            "Slice" => match [input(1)?.integers(), input(2)?.integers()].concat()[..] {
                [start, end] => input(0)?.sliced(start, end),
                _ => None,
            },
            _ => None,
        }
    }
}

/// What a `Constant` holds.
fn value_of(node: Node<'_>) -> Option<Tensor> {
    let attribute = node.0.attribute.first()?;
    let scalar = |value| Some(Tensor { shape: vec![], values: vec![value] });
    match attribute.name.as_str() {
        "value" => Tensor::decode(attribute.t.as_ref()?),
        "value_float" => scalar(attribute.f),
        "value_int" => scalar(attribute.i as f32),
        "value_floats" => Some(Tensor::vector(attribute.floats.clone())),
        "value_ints" => {
            Some(Tensor::vector(attribute.ints.iter().map(|&value| value as f32).collect()))
        }
        _ => None,
    }
}
