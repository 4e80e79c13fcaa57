use engine::Precision;
use serde::{Deserialize, Serialize};

/// Tensors start at multiples of so many bytes: a cache line, and no instruction set wants more.
pub const ALIGNMENT: usize = 64;

/// Rows of a matrix that lie together, word by word.
pub const PANEL: usize = 32;

/// Rows and columns of a matrix, and rows of a table, are padded with zeros to a multiple of so many
/// elements.
pub const SEGMENT: usize = 64;

/// Counts layouts: weights of another one mean something else.
pub const LAYOUT: u32 = 1;

/// An encoder without its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// [`LAYOUT`] of the build that packed it.
    pub layout: u32,
    /// Elements of a token between layers.
    pub hidden_size: usize,
    /// Elements of a row of the tables.
    pub embedding_size: usize,
    /// Blocks of attention and feed-forward.
    pub num_layers: usize,
    /// Of every layer.
    pub num_heads: usize,
    /// Elements of a head, before padding.
    pub head_dim: usize,
    /// Added to the variance.
    pub layer_norm_eps: f32,
    /// Of the feed-forward parts.
    pub hidden_act: Activation,
    /// Set where positions count behind a padding token (RoBERTa).
    pub padding_idx: Option<u32>,
    /// Set where scores have a bias by distance (MPNet).
    pub max_distance: Option<usize>,
    /// What is read from the last hidden states.
    pub readout: Head,
    /// In the order in which they are needed; kept beside the description.
    #[serde(skip)]
    pub tensors: Vec<Tensor>,
}

/// What is read from the last hidden states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// All of them.
    HiddenStates,
    /// The first token's, through layers with these activations.
    FirstToken(Vec<Activation>),
    /// All of them, through a graph that tract runs.
    Graph,
}

/// What follows a linear layer, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x/2 · (1 + erf(x/√2))`
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
}

/// A run of bytes with a meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// Unique within the bundle.
    pub name: String,
    /// An [`ElementType`], if this build knows it.
    pub dtype: String,
    /// Before padding: `[out_features, in_features]`, `[num_rows, width]` or `[len]`.
    pub shape: Vec<usize>,
    /// In bytes, from the start of the weights.
    pub offset: usize,
    /// In bytes.
    pub length: usize,
    /// In hexadecimal; filled in when the bundle is written.
    #[serde(default)]
    pub sha256: String,
}

/// The elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    /// Of weights.
    Of(Precision),
    /// Of sums.
    Int32,
}

impl ElementType {
    /// As a [`Tensor`] spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Of(precision) => precision.as_str(),
            Self::Int32 => "int32",
        }
    }

    /// Bytes of an element.
    #[must_use]
    pub fn num_bytes(self) -> usize {
        match self {
            Self::Of(Precision::F32) | Self::Int32 => 4,
            Self::Of(Precision::Bf16) => 2,
            Self::Of(Precision::Int8) => 1,
        }
    }
}

/// The least multiple of `unit` that is not below `size`.
#[must_use]
pub fn padded(size: usize, unit: usize) -> usize {
    size.div_ceil(unit) * unit
}
