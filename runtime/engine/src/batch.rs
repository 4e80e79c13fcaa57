use std::ops::Range;

/// Sequences of token ids, packed one behind the other without padding.
///
/// # Shapes
///
/// - `input_ids`, `token_type_ids`: `[num_tokens]`
/// - `cu_seqlens`: `[batch_size + 1]`, starts at 0, in tokens; sequence `i` is
///   `input_ids[cu_seqlens[i]..cu_seqlens[i + 1]]`
///
/// # Example
///
/// ```
/// let mut batch = sanderling_engine::Batch::new();
/// batch.push(&[101, 2204, 102]);
/// batch.push(&[101, 102]);
/// assert_eq!(batch.cu_seqlens(), [0, 3, 5]);
/// assert_eq!(batch.sequence(1), [101, 102]);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u32>,
    cu_seqlens: Vec<u32>,
}

impl Batch {
    /// A batch of no sequences.
    #[must_use]
    pub fn new() -> Self {
        Self { input_ids: Vec::new(), token_type_ids: Vec::new(), cu_seqlens: vec![0] }
    }

    /// Appends one sequence of a single segment.
    ///
    /// # Panics
    ///
    /// If the batch would hold more than `u32::MAX` tokens.
    pub fn push(&mut self, input_ids: &[u32]) {
        self.push_segments(input_ids, &vec![0; input_ids.len()]);
    }

    /// Appends one sequence whose tokens belong to the segments `token_type_ids`, as those of a
    /// pair of texts do.
    ///
    /// # Panics
    ///
    /// If there is not one type a token, or the batch would hold more than `u32::MAX` tokens.
    pub fn push_segments(&mut self, input_ids: &[u32], token_type_ids: &[u32]) {
        assert_eq!(input_ids.len(), token_type_ids.len(), "batch: one token type a token");
        self.input_ids.extend_from_slice(input_ids);
        self.token_type_ids.extend_from_slice(token_type_ids);
        assert!(self.input_ids.len() <= u32::MAX as usize, "batch: over {} tokens", u32::MAX);
        self.cu_seqlens.push(self.input_ids.len() as u32);
    }

    /// Token ids of all sequences, `[num_tokens]`.
    #[must_use]
    pub fn input_ids(&self) -> &[u32] {
        &self.input_ids
    }

    /// Where each sequence starts, `[batch_size + 1]`, in tokens. Never falls.
    #[must_use]
    pub fn cu_seqlens(&self) -> &[u32] {
        &self.cu_seqlens
    }

    /// Number of sequences.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Number of tokens in all sequences.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Token ids of sequence `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Batch::batch_size`].
    #[must_use]
    pub fn sequence(&self, index: usize) -> &[u32] {
        &self.input_ids[self.tokens(index)]
    }

    /// Segment of each token of sequence `index`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Batch::batch_size`].
    #[must_use]
    pub fn token_types(&self, index: usize) -> &[u32] {
        &self.token_type_ids[self.tokens(index)]
    }

    fn tokens(&self, index: usize) -> Range<usize> {
        self.cu_seqlens[index] as usize..self.cu_seqlens[index + 1] as usize
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}
