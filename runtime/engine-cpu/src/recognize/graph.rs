//! An index of an ONNX graph: who makes a tensor, and what depends on it.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
};

use super::{Unrecognized, constant::Cost, tensor::is_float};

/// An operator of the graph.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node<'m>(pub(super) &'m NodeProto);

impl<'m> Node<'m> {
    /// Its type; of the operators outside the standard only `Gelu` has a name.
    pub(super) fn op(self) -> &'m str {
        match (self.0.domain.as_str(), self.0.op_type.as_str()) {
            ("" | "ai.onnx", op) | ("com.microsoft", op @ "Gelu") => op,
            _ => "",
        }
    }

    /// The name of input `index`; `None` where it is left out.
    pub(super) fn input(self, index: usize) -> Option<&'m str> {
        self.0.input.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    pub(super) fn output(self) -> Option<&'m str> {
        self.0.output.first().map(String::as_str)
    }

    pub(super) fn attribute(self, name: &str) -> Option<&'m AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)
    }

    pub(super) fn int(self, name: &str) -> Option<i64> {
        Some(self.attribute(name)?.i)
    }

    pub(super) fn float(self, name: &str) -> Option<f32> {
        Some(self.attribute(name)?.f)
    }

    /// All tensors it reads, also those that only its subgraphs (`If`, `Loop`) name.
    pub(super) fn reads(self) -> Vec<&'m str> {
        let mut names: Vec<_> = self.0.input.iter().map(String::as_str).collect();
        let mut subgraphs: Vec<_> = self.subgraphs().collect();
        while let Some(subgraph) = subgraphs.pop() {
            names.extend(subgraph.output.iter().map(|output| output.name.as_str()));
            for node in subgraph.node.iter().map(Node) {
                names.extend(node.0.input.iter().map(String::as_str));
                subgraphs.extend(node.subgraphs());
            }
        }
        names.retain(|name| !name.is_empty());
        names
    }

    fn subgraphs(self) -> impl Iterator<Item = &'m GraphProto> {
        self.0.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
    }
}

/// A graph whose nodes stand in order of computation, by the names of its tensors.
#[derive(Debug)]
pub(super) struct OnnxGraph<'m> {
    pub(super) proto: &'m GraphProto,
    nodes: HashMap<&'m str, Node<'m>>,
    initializers: HashMap<&'m str, &'m TensorProto>,
    inputs: HashMap<&'m str, &'m ValueInfoProto>,
    /// How many operators it takes to compute each tensor that needs no input.
    costs: HashMap<&'m str, Cost>,
}

impl<'m> OnnxGraph<'m> {
    /// # Errors
    ///
    /// [`Unrecognized`] if a node reads what no earlier node makes: nothing below needs to fear
    /// cycles.
    pub(super) fn index(model: &'m ModelProto) -> Result<Self, Unrecognized> {
        let proto =
            model.graph.as_ref().ok_or_else(|| Unrecognized::new("the file holds no graph"))?;
        let initializers: HashMap<_, _> =
            proto.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let inputs: HashMap<_, _> =
            proto.input.iter().map(|input| (input.name.as_str(), input)).collect();
        let costs = initializers.keys().map(|&name| (name, Cost::default())).collect();
        let mut graph = Self { proto, nodes: HashMap::new(), initializers, inputs, costs };
        for node in proto.node.iter().map(Node) {
            for name in node.0.input.iter().filter(|name| !name.is_empty()) {
                if !graph.knows(name) {
                    return Err(Unrecognized::new(format!(
                        "tensor \"{name}\" is read before it is made"
                    )));
                }
            }
            let inputs = node.0.input.iter().filter(|name| !name.is_empty());
            let cost = Cost::of(node, inputs.map(|name| graph.cost(name)));
            if let (Some(cost), Some(output)) = (cost, node.output()) {
                graph.costs.insert(output, cost);
            }
            for name in node.0.output.iter().filter(|name| !name.is_empty()) {
                if graph.knows(name) {
                    return Err(Unrecognized::new(format!("tensor \"{name}\" is made twice")));
                }
                graph.nodes.insert(name, node);
            }
        }
        Ok(graph)
    }

    fn knows(&self, tensor: &str) -> bool {
        self.nodes.contains_key(tensor)
            || self.initializers.contains_key(tensor)
            || self.inputs.contains_key(tensor)
    }

    /// What it takes to compute `tensor`, if no input of the graph is needed.
    pub(super) fn cost(&self, tensor: &str) -> Option<Cost> {
        self.costs.get(tensor).copied()
    }

    pub(super) fn initializer(&self, tensor: &str) -> Option<&'m TensorProto> {
        self.initializers.get(tensor).copied()
    }

    /// The input of the graph with this name.
    pub(super) fn input(&self, tensor: &str) -> Option<&'m ValueInfoProto> {
        self.inputs.get(tensor).copied().filter(|_| !self.initializers.contains_key(tensor))
    }

    /// The node whose first output is `tensor`.
    pub(super) fn node(&self, tensor: &str) -> Option<Node<'m>> {
        self.maker(tensor).filter(|node| node.output() == Some(tensor))
    }

    /// The node that has `tensor` among its outputs.
    pub(super) fn maker(&self, tensor: &str) -> Option<Node<'m>> {
        self.nodes.get(tensor).copied()
    }

    /// The node of this type behind `tensor`.
    pub(super) fn node_of(&self, tensor: &'m str, op: &str) -> Option<Node<'m>> {
        self.node(self.source(tensor)).filter(|node| node.op() == op)
    }

    /// Where the numbers of `tensor` come from: past all that only moves or rounds them.
    pub(super) fn source(&self, mut tensor: &'m str) -> &'m str {
        while let Some(node) = self.node(tensor) {
            let transparent = match node.op() {
                "Identity" | "Dropout" | "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze"
                | "Flatten" | "Expand" => true,
                "Cast" => node.int("to").is_some_and(is_float),
                _ => false,
            };
            match node.input(0) {
                Some(input) if transparent => tensor = input,
                _ => break,
            }
        }
        tensor
    }

    /// The two sides of the `Add` behind `tensor`.
    pub(super) fn summands(&self, tensor: &'m str) -> Option<(&'m str, &'m str)> {
        let node = self.node_of(tensor, "Add")?;
        Some((node.input(0)?, node.input(1)?))
    }

    /// Splits the inputs of a commutative node into the one that is constant and the other.
    pub(super) fn constant_operand(&self, node: Node<'m>) -> Option<(&'m str, &'m str)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        match (self.is_constant(a), self.is_constant(b)) {
            (false, true) => Some((a, b)),
            (true, false) => Some((b, a)),
            _ => None,
        }
    }

    /// `tensor` and all whose values, not only shapes, come from it.
    pub(super) fn dependents(&self, tensor: &'m str) -> HashSet<&'m str> {
        let mut dependents = HashSet::from([tensor]);
        for node in self.proto.node.iter().map(Node) {
            let depends = || node.reads().iter().any(|name| dependents.contains(name));
            if !matches!(node.op(), "Shape" | "Size") && depends() {
                dependents.extend(node.0.output.iter().map(String::as_str));
            }
        }
        dependents
    }

    /// The nodes whose values, not only shapes, go into `tensor`; nearest first.
    pub(super) fn ancestors(&self, tensor: &'m str) -> Vec<Node<'m>> {
        let mut seen = HashSet::from([tensor]);
        let mut ancestors: Vec<_> = self.maker(tensor).into_iter().collect();
        let mut next = 0;
        while let Some(&node) = ancestors.get(next) {
            next += 1;
            if !matches!(node.op(), "Shape" | "Size") {
                let unseen = node.reads().into_iter().filter(|&name| seen.insert(name));
                ancestors.extend(unseen.filter_map(|name| self.maker(name)));
            }
        }
        ancestors
    }
}
