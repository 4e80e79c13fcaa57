//! One forward pass over packed tokens: what goes in, what is written on the way, what comes out.

use std::sync::Arc;

use encoder::Tokens;

use super::{
    attention::Scratch,
    buffer::Buffer,
    isa::PANEL,
    linear::{PackedRows, Panels},
    stages::Stages,
};
use crate::model::{Model, Readout};

/// What a thread keeps from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pub(crate) scratch: Scratch,
    pub(crate) workspace: Workspace,
}

/// What a pass writes between its operators.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// `[num_tokens, row_stride]`
    pub(super) hidden_states: Buffer,
    pub(super) query_key_value: Buffer,
    pub(super) context: Buffer,
    pub(super) intermediate: Buffer,
    /// What a linear layer gives before it is added to the hidden states.
    pub(super) update: Buffer,
    pub(super) packed_words: Buffer,
    pub(super) packed_scales: Buffer,
    /// `[batch_size, row_stride]`
    pub(super) pooled: Buffer,
    pub(super) head: [Buffer; 2],
    /// `[num_heads, 2 · max_seqlen - 1]`
    pub(super) position_bias: Vec<f32>,
}

/// A forward pass under way.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(super) model: Arc<Model>,
    pub(super) tokens: Tokens,
    pub(super) workspace: Workspace,
    pub(super) stages: Stages,
    pub(super) num_threads: usize,
}

impl Pass {
    /// Prepares a pass of `model` over `tokens` for about `num_threads` threads, in the memory of a
    /// pass before.
    pub(crate) fn new(
        model: Arc<Model>,
        tokens: Tokens,
        mut workspace: Workspace,
        num_threads: usize,
    ) -> Self {
        let num_tokens = tokens.num_tokens();
        let batch_size = tokens.batch_size();
        let sizes = model.sizes();
        workspace.hidden_states.reserve::<f32>(num_tokens * sizes.row_stride);
        workspace
            .query_key_value
            .reserve::<f32>(num_tokens * (3 * sizes.attention_panels + 1) * PANEL);
        workspace.context.reserve::<f32>(num_tokens * (sizes.attention_panels + 1) * PANEL);
        workspace.intermediate.reserve::<f32>(num_tokens * sizes.intermediate_panels * PANEL);
        workspace.update.reserve::<f32>(num_tokens * sizes.row_stride);
        workspace.packed_words.reserve::<u32>(num_tokens.max(batch_size) * sizes.max_words);
        workspace.packed_scales.reserve::<f32>(num_tokens.max(batch_size));
        workspace.pooled.reserve::<f32>(batch_size * sizes.row_stride);
        for head in &mut workspace.head {
            head.reserve::<f32>(batch_size * sizes.max_head_panels * PANEL);
        }
        workspace.position_bias = model.position_bias(tokens.max_seqlen());
        let stages = Stages::new(model.num_stages());
        Self { model, tokens, workspace, stages, num_threads }
    }

    /// Works on the pass until it is done, along with whoever else has joined.
    pub(crate) fn join(&self, scratch: &mut Scratch) {
        (self.model.kernels().run)(self, scratch);
    }

    /// The memory of the pass, for another.
    pub(crate) fn into_workspace(self) -> Workspace {
        self.workspace
    }

    /// The rows that the pass gave, `[batch_size or num_tokens, width]`, once [`Pass::join`] has
    /// returned in this thread; `None` if it has not, or if a thread panicked.
    pub(crate) fn rows(&self) -> Option<Vec<f32>> {
        if !self.stages.ended() || self.stages.failed() {
            return None;
        }
        let sizes = self.model.sizes();
        let (source, num_rows, width) = match self.model.readout() {
            Readout::HiddenStates => {
                (self.hidden_states(), self.tokens.num_tokens(), sizes.hidden_size)
            }
            Readout::Pooled(_) => (self.pooled(), self.tokens.batch_size(), sizes.hidden_size),
            Readout::FirstToken { num_layers, width } => {
                let batch_size = self.tokens.batch_size();
                (self.head(num_layers), batch_size, width)
            }
        };
        let mut rows = Vec::with_capacity(num_rows * width);
        for row in 0..num_rows {
            for panel in 0..width.div_ceil(PANEL) {
                let len = (width - panel * PANEL).min(PANEL);
                // SAFETY: the pass is done, so nobody writes the row, and it has the panel.
                let columns = unsafe { std::slice::from_raw_parts(source.at(panel, row), len) };
                rows.extend_from_slice(columns);
            }
        }
        Some(rows)
    }

    pub(super) fn hidden_states(&self) -> Panels<f32> {
        let stride = self.model.sizes().row_stride;
        Panels::row_major(self.workspace.hidden_states.pointer(), stride)
    }

    pub(super) fn pooled(&self) -> Panels<f32> {
        Panels::row_major(self.workspace.pooled.pointer(), self.model.sizes().row_stride)
    }

    /// What layer `layer - 1` of the head gives.
    pub(super) fn head(&self, layer: usize) -> Panels<f32> {
        let buffer = &self.workspace.head[(layer + 1) % 2];
        Panels::cut(buffer.pointer(), self.tokens.batch_size())
    }

    pub(super) fn of_tokens<T: Copy>(&self, buffer: &Buffer) -> Panels<T> {
        Panels::cut(buffer.pointer(), self.tokens.num_tokens())
    }

    pub(super) fn packed(&self) -> PackedRows {
        PackedRows {
            words: self.workspace.packed_words.pointer(),
            scales: self.workspace.packed_scales.pointer(),
        }
    }
}
