use crate::EngineError;

/// What a forward pass gives: one row for each sequence, in the order of the batch.
///
/// # Shapes
///
/// - `values`: `[batch_size, width]`: logits of a classifier (`width` = `num_labels`), or pooled
///   hidden states (`width` = `hidden_size`)
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    values: Vec<f32>,
    batch_size: usize,
    width: usize,
}

impl Output {
    /// Takes `values` as `batch_size` rows of equal width.
    ///
    /// # Errors
    ///
    /// [`EngineError::ShapeMismatch`] if `values` does not divide into `batch_size` rows of one
    /// or more numbers.
    pub fn new(values: Vec<f32>, batch_size: usize) -> Result<Self, EngineError> {
        let width = values.len() / batch_size.max(1);
        if values.len() != batch_size * width || (batch_size > 0 && width == 0) {
            return Err(EngineError::ShapeMismatch {
                tensor: "output",
                expected: vec![batch_size, width.max(1)],
                actual_len: values.len(),
            });
        }
        Ok(Self { values, batch_size, width })
    }

    /// Number of rows.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.batch_size
    }

    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// The row of sequence `index`, `[width]`.
    ///
    /// # Panics
    ///
    /// If `index` is not below [`Output::batch_size`].
    #[must_use]
    pub fn row(&self, index: usize) -> &[f32] {
        assert!(index < self.batch_size, "row {index} of {}", self.batch_size);
        &self.values[index * self.width..(index + 1) * self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_evenly() {
        let output = Output::new(vec![1.0, 2.0, 3.0, 4.0], 2).unwrap();
        assert_eq!(output.row(0), [1.0, 2.0]);
        assert_eq!(output.row(1), [3.0, 4.0]);
        assert_eq!(Output::new(vec![], 0).unwrap().batch_size(), 0);
    }

    #[test]
    fn uneven_rows_are_refused() {
        let error = Output::new(vec![1.0, 2.0, 3.0], 2).unwrap_err();
        assert_eq!(error.to_string(), "output: expected shape [2, 1], got 3 elements");
        assert!(Output::new(vec![], 2).is_err());
    }
}
