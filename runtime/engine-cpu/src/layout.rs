//! The packed layout: an encoder's weights as the kernels read them, and the description that says
//! where each tensor lies. Reading it does no arithmetic.

use serde::{Deserialize, Serialize};

use crate::{encoder::Activation, simd::Dtype};

/// Tensors start at multiples of this: a cache line, and no instruction set wants more.
pub(crate) const ALIGNMENT: usize = 64;

/// Counts layouts: weights of another one mean something else.
pub(crate) const LAYOUT: u32 = 1;

/// An encoder without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// [`LAYOUT`] of the build that packed it.
    pub(crate) layout: u32,
    pub(crate) hidden_size: usize,
    pub(crate) embedding_size: usize,
    pub(crate) num_layers: usize,
    pub(crate) num_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) layer_norm_eps: f32,
    pub(crate) hidden_act: Activation,
    /// Set where positions count behind a padding token (RoBERTa).
    pub(crate) padding_idx: Option<u32>,
    /// Set where scores have a bias by distance (MPNet).
    pub(crate) max_distance: Option<usize>,
    pub(crate) readout: Head,
    /// In the order in which they are needed; kept beside the description.
    #[serde(skip)]
    pub(crate) tensors: Vec<Tensor>,
}

/// What is read from the last hidden states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Head {
    /// All of them.
    HiddenStates,
    /// The first token's, through layers with these activations.
    FirstToken(Vec<Activation>),
    /// All of them, through a graph that tract runs.
    Graph,
}

/// A run of bytes with a meaning.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: ElementType,
    /// Before padding: `[out_features, in_features]`, `[num_rows, width]` or `[len]`.
    pub(crate) shape: Vec<usize>,
    /// In bytes, from the start of the weights.
    pub(crate) offset: usize,
    /// In bytes.
    pub(crate) length: usize,
}

/// The elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ElementType {
    F32,
    Bf16,
    Int8,
    Int32,
}

impl ElementType {
    const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Int8, Self::Int32];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
            Self::Int32 => "int32",
        }
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.as_str() == word)
    }
}

impl From<Dtype> for ElementType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::Bf16,
            Dtype::Int8 => Self::Int8,
        }
    }
}

/// The least multiple of `unit` that is not below `size`.
pub(crate) fn padded(size: usize, unit: usize) -> usize {
    size.div_ceil(unit) * unit
}
