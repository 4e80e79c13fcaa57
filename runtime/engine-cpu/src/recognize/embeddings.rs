//! Embeddings: which rows of which tables are added up, and what is done to the sum.

use std::ops::Range;

use super::{
    Unrecognized,
    graph::OnnxGraph,
    pattern::{self, Norm, lookup},
    tensor::Tensor,
};
use crate::exported::{Embeddings, Linear, Positions, Table};

/// The embeddings of the graph, and the tensor they make.
pub(super) fn find<'m>(
    graph: &OnnxGraph<'m>,
    norms: &[Norm<'m>],
) -> Result<(Embeddings, &'m str), Unrecognized> {
    let norm = norms.first().ok_or_else(|| Unrecognized::new("nothing is normalized"))?;
    let (mut word, mut position, mut token_type) = (None, None, None);
    for tensor in terms(graph, norm.input)? {
        let is_first = match read_term(graph, tensor)? {
            Term::Word(table) => word.replace(table).is_none(),
            Term::Position(table, positions) => position.replace((table, positions)).is_none(),
            Term::TokenType(table) => token_type.replace(table).is_none(),
        };
        if !is_first {
            return Err(Unrecognized::new("two embeddings are of the same kind"));
        }
    }
    let word = word.ok_or_else(|| Unrecognized::new("no word embeddings"))?;
    let (position, positions) =
        position.ok_or_else(|| Unrecognized::new("no position embeddings"))?;
    let (projection, output) = match projection(graph, norms, norm.output) {
        Some((projection, output)) => (Some(projection), output),
        None => (None, norm.output),
    };
    let norm = norm.norm.clone();
    Ok((Embeddings { word, position, positions, token_type, norm, projection }, output))
}

/// The linear layer between the normalized embeddings and the first layer, if there is one.
fn projection<'m>(
    graph: &OnnxGraph<'m>,
    norms: &[Norm<'m>],
    embeddings: &'m str,
) -> Option<(Linear, &'m str)> {
    let (a, b) = norms.get(1).and_then(|norm| graph.summands(norm.input))?;
    let sides = [graph.source(a), graph.source(b)];
    if sides.contains(&embeddings) {
        return None;
    }
    sides.into_iter().find_map(|side| {
        let (linear, input) = pattern::linear(graph, side)?;
        (input == embeddings).then_some((linear, side))
    })
}

/// All that is added up in `sum`.
fn terms<'m>(graph: &OnnxGraph<'m>, sum: &'m str) -> Result<Vec<&'m str>, Unrecognized> {
    const MAX_TERMS: usize = 3;
    let (mut sums, mut terms) = (vec![sum], Vec::new());
    while let Some(tensor) = sums.pop() {
        match graph.summands(tensor) {
            Some((a, b)) => sums.extend([a, b]),
            None => terms.push(tensor),
        }
        if sums.len() + terms.len() > MAX_TERMS {
            return Err(Unrecognized::new("what is normalized first is no sum of embeddings"));
        }
    }
    Ok(terms)
}

/// One of the embeddings that are added up.
enum Term {
    Word(Table),
    Position(Table, Positions),
    TokenType(Table),
}

fn read_term<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Result<Term, Unrecognized> {
    if let Some((table, indices)) = lookup(graph, tensor) {
        return match read_indices(graph, indices)? {
            Indices::Words => Ok(Term::Word(table)),
            Indices::TokenTypes => Ok(Term::TokenType(table)),
            Indices::Zeros => Ok(Term::TokenType(rows(table, 0..1)?)),
            Indices::CountingFrom(first) => {
                let end = table.num_rows;
                Ok(Term::Position(rows(table, first..end)?, Positions::FromZero))
            }
            Indices::AfterPadding(padding_idx) => {
                Ok(Term::Position(table, Positions::AfterPadding { padding_idx }))
            }
        };
    }
    // Rows that the exporter looked up itself: `[1, num_rows, width]`.
    let found = graph
        .constant(origin(graph, tensor))
        .ok_or_else(|| Unrecognized::new("what is normalized first is no sum of embeddings"))?;
    let width = found.shape.last().copied().filter(|&width| width > 0).unwrap_or(1);
    let table = Table { num_rows: found.values.len() / width, width, values: found.values };
    match table.num_rows {
        1 => Ok(Term::TokenType(table)),
        _ => Ok(Term::Position(table, Positions::FromZero)),
    }
}

/// Only those rows of `table`.
fn rows(mut table: Table, rows: Range<usize>) -> Result<Table, Unrecognized> {
    if rows.is_empty() || rows.end > table.num_rows {
        return Err(Unrecognized::new("rows beyond a table are embedded"));
    }
    table.values.truncate(rows.end * table.width);
    table.values.drain(..rows.start * table.width);
    table.num_rows = rows.len();
    Ok(table)
}

/// Where integers or rows come from: past what cuts them to the length of the sequence.
fn origin<'m>(graph: &OnnxGraph<'m>, mut tensor: &'m str) -> &'m str {
    while let Some(node) = graph.node(tensor) {
        match (node.op(), node.input(0)) {
            (
                "Identity" | "Cast" | "Reshape" | "Squeeze" | "Unsqueeze" | "Expand" | "Slice"
                | "GatherElements",
                Some(input),
            ) => tensor = input,
            _ => break,
        }
    }
    tensor
}

/// What the indices into a table of embeddings are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Indices {
    Words,
    TokenTypes,
    Zeros,
    CountingFrom(usize),
    AfterPadding(u32),
}

fn read_indices<'m>(graph: &OnnxGraph<'m>, indices: &'m str) -> Result<Indices, Unrecognized> {
    let unknown = || Unrecognized::new("cannot tell which rows of a table are embedded");
    let source = origin(graph, indices);
    match source {
        "input_ids" => return Ok(Indices::Words),
        "token_type_ids" => return Ok(Indices::TokenTypes),
        _ if graph.input(source).is_some() => return Err(unknown()),
        _ => {}
    }
    if let Some(constant) = graph.constant(source) {
        let ids = constant.integers();
        let first = ids.first().copied().ok_or_else(unknown)?;
        let counts = ids.iter().zip(0..).all(|(id, index)| id.checked_sub(first) == Some(index));
        return match usize::try_from(first) {
            Ok(first) if counts && ids.len() > 1 => Ok(Indices::CountingFrom(first)),
            Ok(0) if ids.iter().all(|&id| id == 0) => Ok(Indices::Zeros),
            _ => Err(unknown()),
        };
    }
    let node = graph.node(source).ok_or_else(unknown)?;
    match node.op() {
        "ConstantOfShape" => {
            let value = node.attribute("value").and_then(|attribute| attribute.t.as_ref());
            let is_zero = value.is_none_or(|value| {
                Tensor::decode(value).is_some_and(|value| value.values == [0.0])
            });
            if is_zero { Ok(Indices::Zeros) } else { Err(unknown()) }
        }
        "Range" => {
            let number = |index| graph.scalar(node.input(index)?, None);
            match (number(0), number(2)) {
                (Some(first), Some(1.0)) if first >= 0.0 => {
                    Ok(Indices::CountingFrom(first as usize))
                }
                _ => Err(unknown()),
            }
        }
        "Add" => padding_idx(graph, source).map(Indices::AfterPadding).ok_or_else(unknown),
        _ => Err(unknown()),
    }
}

/// The id of the padding, if `positions` are `padding_idx + cumsum(input_ids != padding_idx)`,
/// padding itself at `padding_idx`.
fn padding_idx<'m>(graph: &OnnxGraph<'m>, positions: &'m str) -> Option<u32> {
    let ancestors = graph.ancestors(positions);
    let find = |op| ancestors.iter().copied().find(|node| node.op() == op);
    find("CumSum")?;
    let (ids, padding_idx) = graph.constant_operand(find("Equal")?)?;
    let (_, first) = graph.constant_operand(graph.node(positions)?)?;
    let padding_idx = graph.scalar(padding_idx, None)?;
    let fits = origin(graph, ids) == "input_ids"
        && graph.scalar(first, None)? == padding_idx
        && padding_idx >= 0.0;
    fits.then_some(padding_idx as u32)
}
