use crate::{Pooling, Precision};

/// How an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Threads, the caller's included.
    pub num_threads: usize,
    /// What linear layers are computed in. `None`: what the bundle says, else `f32`.
    pub precision: Option<Precision>,
    /// What becomes of hidden states where a model has no head. `None`: what the bundle says, else
    /// [`Pooling::Mean`].
    pub pooling: Option<Pooling>,
}

impl Default for Options {
    fn default() -> Self {
        Self { num_threads: 1, precision: None, pooling: None }
    }
}
