//! What becomes of the last hidden states on their way to the first output of the graph.

use std::collections::HashSet;

use encoder::Activation;
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, TensorShapeProto, TypeProto, ValueInfoProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension},
    type_proto,
};

use super::{
    Unrecognized, activation,
    graph::{Node, OnnxGraph},
    pattern,
    tensor::is_float,
};
use crate::exported::{Head, Linear};

/// How the rest of the graph is called on the hidden states.
const INPUT: &str = "hidden_states";

/// The way from `hidden_states` `[batch_size, seq_len, hidden_size]` to the first output.
///
/// `dependents` are all tensors that depend on the embeddings.
pub(super) fn find<'m>(
    model: &'m ModelProto,
    graph: &OnnxGraph<'m>,
    dependents: &HashSet<&'m str>,
    hidden_states: &'m str,
    hidden_size: usize,
) -> Result<Head, Unrecognized> {
    let output = graph.proto.output.first().ok_or_else(|| Unrecognized::new("no output"))?;
    if is_copy(graph, &output.name, hidden_states) {
        return Ok(Head::HiddenStates);
    }
    if let Some(layers) = first_token(graph, &output.name, hidden_states) {
        return Ok(Head::FirstToken(layers));
    }
    let rest = rest(graph, dependents, output, hidden_states, hidden_size)?;
    Ok(Head::Graph(Box::new(ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        functions: model.functions.clone(),
        graph: Some(rest),
        ..ModelProto::default()
    })))
}

/// Whether `tensor` is `original` under another name or in another float type.
fn is_copy<'m>(graph: &OnnxGraph<'m>, mut tensor: &'m str, original: &str) -> bool {
    while tensor != original {
        let Some(node) = graph.node(tensor) else { return false };
        match (node.op(), node.input(0)) {
            ("Identity" | "Dropout", Some(input)) => tensor = input,
            ("Cast", Some(input)) if node.int("to").is_some_and(is_float) => tensor = input,
            _ => return false,
        }
    }
    true
}

/// The layers between the first row of `hidden_states` and `output`, if there is nothing else.
fn first_token<'m>(
    graph: &OnnxGraph<'m>,
    output: &'m str,
    hidden_states: &str,
) -> Option<Vec<(Linear, Activation)>> {
    let mut layers = Vec::new();
    let mut tensor = graph.source(output);
    while !is_first_token(graph, tensor, hidden_states) {
        let (activation, inner) =
            activation::find(graph, tensor).unwrap_or((Activation::Identity, tensor));
        let (linear, input) = pattern::linear(graph, inner)?;
        layers.push((linear, activation));
        tensor = input;
    }
    layers.reverse();
    Some(layers)
}

/// Whether `tensor` is `hidden_states[:, 0]`.
fn is_first_token<'m>(graph: &OnnxGraph<'m>, tensor: &'m str, hidden_states: &str) -> bool {
    let first = |node: Node<'m>| {
        let number = |index| graph.scalar(node.input(index)?, None);
        match node.op() {
            "Gather" => Some(node.int("axis")? == 1 && number(1)? == 0.0),
            "Slice" => Some(number(1)? == 0.0 && number(2)? == 1.0 && number(3)? == 1.0),
            _ => None,
        }
    };
    graph.node(tensor).is_some_and(|node| {
        first(node) == Some(true)
            && node.input(0).is_some_and(|input| graph.source(input) == hidden_states)
    })
}

/// The part of the graph between `hidden_states` and `output`.
fn rest<'m>(
    graph: &OnnxGraph<'m>,
    dependents: &HashSet<&'m str>,
    output: &ValueInfoProto,
    hidden_states: &'m str,
    hidden_size: usize,
) -> Result<GraphProto, Unrecognized> {
    let after = graph.dependents(hidden_states);
    if !after.contains(output.name.as_str()) {
        return Err(Unrecognized::new("the first output is not made of the last hidden states"));
    }
    let mut needed = HashSet::from([output.name.as_str()]);
    let mut nodes = Vec::new();
    for node in graph.proto.node.iter().rev().map(Node) {
        let makes = node.0.output.iter().map(String::as_str);
        if !makes.clone().any(|name| needed.contains(name) && name != hidden_states) {
            continue;
        }
        if makes.clone().any(|name| dependents.contains(name) && !after.contains(name)) {
            return Err(Unrecognized::new("the head looks into the layers"));
        }
        if makes.clone().any(|name| name == INPUT && hidden_states != INPUT) {
            return Err(Unrecognized::new("another tensor is called \"hidden_states\""));
        }
        needed.extend(node.reads());
        nodes.push(node.0.clone());
    }
    if hidden_states != INPUT {
        nodes.push(NodeProto {
            op_type: "Identity".to_owned(),
            input: vec![INPUT.to_owned()],
            output: vec![hidden_states.to_owned()],
            ..NodeProto::default()
        });
    }
    nodes.reverse();
    let is_needed = |name: &str| needed.contains(name);
    let inputs = graph.proto.input.iter().filter(|input| is_needed(&input.name));
    let inputs = inputs.filter(|input| graph.input(&input.name).is_some()).cloned();
    let initializers = graph.proto.initializer.iter().filter(|tensor| is_needed(&tensor.name));
    Ok(GraphProto {
        name: graph.proto.name.clone(),
        node: nodes,
        input: [hidden_states_input(hidden_size)].into_iter().chain(inputs).collect(),
        initializer: initializers.cloned().collect(),
        output: vec![output.clone()],
        ..GraphProto::default()
    })
}

/// `hidden_states`: `f32`, `[1, seq_len, hidden_size]`
fn hidden_states_input(hidden_size: usize) -> ValueInfoProto {
    let dim = |value| Dimension { value: Some(value), ..Dimension::default() };
    let shape = TensorShapeProto {
        dim: vec![
            dim(dimension::Value::DimValue(1)),
            dim(dimension::Value::DimParam("seq_len".to_owned())),
            dim(dimension::Value::DimValue(hidden_size as i64)),
        ],
    };
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(shape) };
    ValueInfoProto {
        name: INPUT.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
