use std::ops::Range;

use engine::{Batch, EngineError};

use crate::{Description, Layout};

/// Packed sequences, as the rows of the tables that they look up.
#[derive(Debug, Clone)]
pub struct Tokens {
    /// `[num_tokens]`
    pub input_ids: Vec<u32>,
    /// `[num_tokens]`
    pub position_ids: Vec<u32>,
    /// `[num_tokens]`
    pub token_type_ids: Vec<u32>,
    /// `[batch_size + 1]`
    pub cu_seqlens: Vec<u32>,
}

impl Tokens {
    /// Reads `sequences` of `batch`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Input`] if a sequence is empty, or needs a row that `layout` does not have.
    ///
    /// # Panics
    ///
    /// If the batch does not have the sequences.
    pub fn read(
        description: &Description,
        layout: &Layout,
        batch: &Batch,
        sequences: Range<usize>,
    ) -> Result<Self, EngineError> {
        let mut tokens = Self {
            input_ids: Vec::new(),
            position_ids: Vec::new(),
            token_type_ids: Vec::new(),
            cu_seqlens: vec![0],
        };
        for index in sequences {
            tokens.push(description, layout, batch, index)?;
        }
        Ok(tokens)
    }

    fn push(
        &mut self,
        description: &Description,
        layout: &Layout,
        batch: &Batch,
        index: usize,
    ) -> Result<(), EngineError> {
        let input_ids = batch.sequence(index);
        let first = self.position_ids.len();
        match description.padding_idx {
            Some(padding_idx) => self.position_ids.extend(behind_padding(input_ids, padding_idx)),
            None => self.position_ids.extend(0..input_ids.len() as u32),
        }
        let Some(&max_position) = self.position_ids[first..].iter().max() else {
            return Err(refused(format!("sequence {index} has no tokens")));
        };
        let num_positions = layout.position.num_rows;
        if max_position as usize >= num_positions {
            let len = input_ids.len();
            let reason = format!("{len} tokens need position {max_position} of {num_positions}");
            return Err(refused(reason));
        }
        let num_words = layout.word.num_rows;
        if let Some(id) = input_ids.iter().find(|&&id| id as usize >= num_words) {
            return Err(refused(format!("token id {id}, the vocabulary has {num_words}")));
        }
        // A table of one row has it for every type.
        let num_types = layout.token_type.as_ref().map_or(1, |table| table.num_rows);
        let token_types = batch.token_types(index);
        if num_types == 1 {
            self.token_type_ids.extend(token_types.iter().map(|_| 0));
        } else if let Some(id) = token_types.iter().find(|&&id| id as usize >= num_types) {
            return Err(refused(format!("token type {id}, the model has {num_types}")));
        } else {
            self.token_type_ids.extend(token_types);
        }
        self.input_ids.extend(input_ids);
        self.cu_seqlens.push(self.input_ids.len() as u32);
        Ok(())
    }

    /// In all sequences.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// How many sequences there are.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// First token and number of tokens of sequence `index`.
    ///
    /// # Panics
    ///
    /// If there is no such sequence.
    #[must_use]
    pub fn sequence(&self, index: usize) -> (usize, usize) {
        let start = self.cu_seqlens[index] as usize;
        (start, self.cu_seqlens[index + 1] as usize - start)
    }

    /// Tokens of the longest sequence.
    #[must_use]
    pub fn max_seqlen(&self) -> usize {
        (0..self.batch_size()).map(|index| self.sequence(index).1).max().unwrap_or(0)
    }
}

/// Tokens other than `padding_idx` count from `padding_idx + 1`; padding has row `padding_idx` (RoBERTa).
fn behind_padding(input_ids: &[u32], padding_idx: u32) -> impl Iterator<Item = u32> {
    let mut position = padding_idx;
    input_ids.iter().map(move |&id| {
        if id == padding_idx {
            return padding_idx;
        }
        position += 1;
        position
    })
}

fn refused(reason: String) -> EngineError {
    EngineError::Input { reason }
}
