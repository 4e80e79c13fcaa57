//! Activation functions, as one operator or as the arithmetic they stand for.

use encoder::Activation;

use super::graph::OnnxGraph;

/// The activation that makes `tensor`, and its input.
pub(super) fn find<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Option<(Activation, &'m str)> {
    let node = graph.node(graph.source(tensor))?;
    let activation = match node.op() {
        "Relu" => Activation::Relu,
        "Tanh" => Activation::Tanh,
        "Gelu" => match node.attribute("approximate").map(|attribute| attribute.s.as_slice()) {
            None | Some(b"none") => Activation::Gelu,
            Some(b"tanh") => Activation::GeluTanh,
            _ => return None,
        },
        _ => return gelu(graph, tensor),
    };
    Some((activation, graph.source(node.input(0)?)))
}

/// `x/2 · (1 + gate(p(x)))`, in whatever order it is multiplied out.
///
/// The `gate` is `erf` or `tanh`; the polynomial `p` says which GELU it is.
fn gelu<'m>(graph: &OnnxGraph<'m>, tensor: &'m str) -> Option<(Activation, &'m str)> {
    const SQRT_2_BY_PI: f32 = 0.797_884_6;
    const HALF: [f32; 4] = [0.0, 0.5, 0.0, 0.0];
    const ERF: [f32; 4] = [0.0, std::f32::consts::FRAC_1_SQRT_2, 0.0, 0.0];
    const TANH: [f32; 4] = [0.0, SQRT_2_BY_PI, 0.0, SQRT_2_BY_PI * 0.044_715];

    let mut expression = Expression { graph, x: None, gate: None };
    let outer = expression.read(tensor, Expression::MAX_DEPTH)?;
    let (op, inner) = expression.gate?;
    let activation = match op {
        "Erf" if is_close(inner, ERF) => Activation::Gelu,
        "Tanh" if is_close(inner, TANH) => Activation::GeluTanh,
        _ => return None,
    };
    let is_gelu = is_close(outer.plain, HALF) && is_close(outer.gated, HALF);
    is_gelu.then_some((activation, expression.x?))
}

/// Within what `f16` keeps of a constant.
fn is_close(found: [f32; 4], expected: [f32; 4]) -> bool {
    found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() <= 1e-3 * expected)
}

/// `plain(x) + gate · gated(x)`; coefficient `i` is that of `xⁱ`.
#[derive(Debug, Clone, Copy, Default)]
struct Polynomial {
    plain: [f32; 4],
    gated: [f32; 4],
}

impl Polynomial {
    const X: Self = Self { plain: [0.0, 1.0, 0.0, 0.0], gated: [0.0; 4] };
    const GATE: Self = Self { plain: [0.0; 4], gated: [1.0, 0.0, 0.0, 0.0] };

    fn number(value: f32) -> Self {
        Self { plain: [value, 0.0, 0.0, 0.0], gated: [0.0; 4] }
    }

    fn add(self, other: Self) -> Self {
        let add = |a: [f32; 4], b: [f32; 4]| std::array::from_fn(|i| a[i] + b[i]);
        Self { plain: add(self.plain, other.plain), gated: add(self.gated, other.gated) }
    }

    /// `None` where a power is too high.
    fn mul(self, other: Self) -> Option<Self> {
        let mut product = Self::default();
        for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
            let plain = self.plain[i] * other.plain[j];
            let gated = self.plain[i] * other.gated[j] + self.gated[i] * other.plain[j];
            if i + j < 4 {
                product.plain[i + j] += plain;
                product.gated[i + j] += gated;
            } else if plain != 0.0 || gated != 0.0 {
                return None;
            }
            if self.gated[i] * other.gated[j] != 0.0 {
                return None;
            }
        }
        Some(product)
    }
}

/// A formula of one tensor, and of one `Erf` or `Tanh` of a polynomial of this tensor.
struct Expression<'g, 'm> {
    graph: &'g OnnxGraph<'m>,
    x: Option<&'m str>,
    gate: Option<(&'m str, [f32; 4])>,
}

impl<'m> Expression<'_, 'm> {
    const MAX_DEPTH: usize = 12;

    /// Reads `tensor`, `max_depth` operators deep; what is no arithmetic is `x`.
    fn read(&mut self, tensor: &'m str, max_depth: usize) -> Option<Polynomial> {
        let depth = max_depth.checked_sub(1)?;
        let tensor = self.graph.source(tensor);
        if let Some(number) = self.graph.scalar(tensor, None) {
            return Some(Polynomial::number(number));
        }
        let Some(node) = self.graph.node(tensor) else { return self.leaf(tensor) };
        if let "Erf" | "Tanh" = node.op() {
            let inner = self.read(node.input(0)?, depth)?;
            let gate = (node.op(), inner.plain);
            let is_first = inner.gated == [0.0; 4] && self.gate.is_none_or(|known| known == gate);
            self.gate = Some(gate);
            return is_first.then_some(Polynomial::GATE);
        }
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return self.leaf(tensor) };
        let number = |tensor| self.graph.scalar(tensor, None);
        let is_vector = |tensor| self.graph.is_constant(tensor) && number(tensor).is_none();
        match node.op() {
            // The bias of a linear layer: its output is `x`.
            "Add" if is_vector(a) || is_vector(b) => self.leaf(tensor),
            "Add" => Some(self.read(a, depth)?.add(self.read(b, depth)?)),
            "Mul" => self.read(a, depth)?.mul(self.read(b, depth)?),
            "Div" => {
                let factor = Polynomial::number(number(b)?.recip());
                self.read(a, depth)?.mul(factor)
            }
            "Pow" => {
                let exponent = number(b)?;
                let base = self.read(a, depth)?;
                match exponent {
                    2.0 => base.mul(base),
                    3.0 => base.mul(base)?.mul(base),
                    _ => None,
                }
            }
            _ => self.leaf(tensor),
        }
    }

    fn leaf(&mut self, tensor: &'m str) -> Option<Polynomial> {
        (*self.x.get_or_insert(tensor) == tensor).then_some(Polynomial::X)
    }
}
