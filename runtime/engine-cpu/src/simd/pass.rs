//! One forward pass over packed tokens: every operator of the encoder, in order, in as many threads
//! as join.

use std::sync::Arc;

use super::{
    attention::{self, Head, Scratch},
    buffer::Buffer,
    isa::{Dtype, Isa, PANEL},
    linear::{
        LinearWeights, PackedRows, Panels, Target, block_rows, multiply_panel, num_blocks,
        pack_block,
    },
    norm::{NormWeights, add_norm, add_table_row},
    portable::Portable,
    stages::Stages,
};
use crate::{
    Pooling,
    model::{Model, Readout},
};

/// Chunks that each thread should find in a stage of linear algebra, so that one that is late
/// leaves little undone.
const CHUNKS_PER_THREAD: usize = 4;

/// The instruction set that passes run with, and the proof that this CPU has it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernels {
    name: &'static str,
    join: fn(&Pass, &mut Scratch),
}

impl Kernels {
    /// The best that this CPU has.
    pub(crate) fn detect() -> Self {
        Self::available()[0]
    }

    /// All that this CPU has, best first.
    pub(crate) fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let candidates = {
            use super::{avx2::Avx2, avx512::Avx512};
            [
                Self::of::<Avx512<true, true>>(),
                Self::of::<Avx512<true, false>>(),
                Self::of::<Avx512<false, false>>(),
                Self::of::<Avx2<true>>(),
                Self::of::<Avx2<false>>(),
                Self::of::<Portable<true>>(),
            ]
        };
        #[cfg(target_arch = "aarch64")]
        let candidates = {
            use super::neon::Neon;
            [
                Self::of::<Neon<true, true>>(),
                Self::of::<Neon<true, false>>(),
                Self::of::<Neon<false, false>>(),
            ]
        };
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let candidates = [];
        candidates.into_iter().chain([Self::of::<Portable<false>>()]).flatten().collect()
    }

    fn of<I: Isa>() -> Option<Self> {
        I::detect().map(|_| Self {
            name: I::NAME,
            // SAFETY: `I::detect` found the features.
            join: |pass, scratch| unsafe { I::run(|| join::<I>(pass, scratch)) },
        })
    }

    /// Name of the instruction set.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

/// What a thread keeps from pass to pass.
#[derive(Debug, Default)]
pub(crate) struct Local {
    pub(crate) scratch: Scratch,
    pub(crate) workspace: Workspace,
}

/// Packed sequences whose ids are known to be within the model's tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens {
    /// `[num_tokens]` each: rows of the word, position and token type tables.
    pub(crate) input_ids: Vec<u32>,
    pub(crate) position_ids: Vec<u32>,
    pub(crate) token_type_ids: Vec<u32>,
    /// `[batch_size + 1]`
    pub(crate) cu_seqlens: Vec<u32>,
}

impl Tokens {
    pub(crate) fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    pub(crate) fn batch_size(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// First token and number of tokens of sequence `index`.
    fn sequence(&self, index: usize) -> (usize, usize) {
        let start = self.cu_seqlens[index] as usize;
        (start, self.cu_seqlens[index + 1] as usize - start)
    }

    fn max_seqlen(&self) -> usize {
        (0..self.batch_size()).map(|index| self.sequence(index).1).max().unwrap_or(0)
    }
}

/// What a pass writes between its operators.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    /// `[num_tokens, row_stride]`
    hidden_states: Buffer,
    query_key_value: Buffer,
    context: Buffer,
    intermediate: Buffer,
    /// What a linear layer gives before it is added to the hidden states.
    update: Buffer,
    packed_words: Buffer,
    packed_scales: Buffer,
    /// `[batch_size, row_stride]`
    pooled: Buffer,
    head: [Buffer; 2],
    /// `[num_heads, 2 · max_seqlen - 1]`
    position_bias: Vec<f32>,
}

/// A forward pass under way.
#[derive(Debug)]
pub(crate) struct Pass {
    model: Arc<Model>,
    tokens: Tokens,
    workspace: Workspace,
    stages: Stages,
    num_threads: usize,
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
        (self.model.kernels().join)(self, scratch);
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

    fn hidden_states(&self) -> Panels<f32> {
        let stride = self.model.sizes().row_stride;
        Panels::row_major(self.workspace.hidden_states.pointer(), stride)
    }

    fn pooled(&self) -> Panels<f32> {
        Panels::row_major(self.workspace.pooled.pointer(), self.model.sizes().row_stride)
    }

    /// What layer `layer - 1` of the head gives.
    fn head(&self, layer: usize) -> Panels<f32> {
        let buffer = &self.workspace.head[(layer + 1) % 2];
        Panels::cut(buffer.pointer(), self.tokens.batch_size())
    }

    fn of_tokens<T: Copy>(&self, buffer: &Buffer) -> Panels<T> {
        Panels::cut(buffer.pointer(), self.tokens.num_tokens())
    }

    fn packed(&self) -> PackedRows {
        PackedRows {
            words: self.workspace.packed_words.pointer(),
            scales: self.workspace.packed_scales.pointer(),
        }
    }
}

/// A thread on its way through the stages of a pass.
struct Walk<'a> {
    pass: &'a Pass,
    stage: usize,
}

impl Walk<'_> {
    /// Runs the next stage, its chunks compiled for the instruction set.
    #[inline(always)]
    fn stage<I: Isa>(&mut self, num_chunks: usize, mut chunk: impl FnMut(usize)) {
        self.pass.stages.run(self.stage, num_chunks, |index| {
            // SAFETY: the walk is in `join::<I>`, whose caller has found the features.
            unsafe {
                I::run(
                    #[inline(always)]
                    || chunk(index),
                )
            };
        });
        self.stage += 1;
    }

    /// Runs `block(start, rows)` for each block of `num_rows` rows.
    #[inline(always)]
    fn blocks<I: Isa>(&mut self, num_rows: usize, mut block: impl FnMut(usize, usize)) {
        self.stage::<I>(
            num_blocks::<I>(num_rows),
            #[inline(always)]
            |index| {
                let (start, rows) = block_rows::<I>(num_rows, index);
                block(start, rows);
            },
        );
    }

    /// `target = weights · packed rows`, panels shared among the threads.
    #[inline(always)]
    unsafe fn multiply<I: Isa>(
        &mut self,
        weights: &LinearWeights<'_>,
        num_rows: usize,
        target: Target,
    ) {
        let pass = self.pass;
        let num_panels = weights.num_panels();
        let panels_per_chunk = match pass.num_threads {
            1 => num_panels,
            threads => num_panels.div_ceil(CHUNKS_PER_THREAD * threads),
        };
        self.stage::<I>(
            num_panels.div_ceil(panels_per_chunk),
            #[inline(always)]
            |chunk| {
                let first = chunk * panels_per_chunk;
                for panel in first..(first + panels_per_chunk).min(num_panels) {
                    // SAFETY: the stage before packed all rows; the panel is this thread's alone.
                    unsafe { multiply_panel::<I>(weights, pass.packed(), num_rows, panel, target) };
                }
            },
        );
    }
}

/// Walks through all stages of `pass`.
///
/// # Safety
///
/// The CPU is an `I`. Within a stage, threads write only rows or panels of their own chunks; what
/// they read was written in stages before.
#[inline(always)]
unsafe fn join<I: Isa>(pass: &Pass, scratch: &mut Scratch) {
    let Pass { model, tokens, workspace, .. } = pass;
    let sizes = model.sizes();
    let num_tokens = tokens.num_tokens();
    let hidden_states = pass.hidden_states();
    let update = pass.of_tokens::<f32>(&workspace.update);
    let context = pass.of_tokens::<f32>(&workspace.context);
    let intermediate = pass.of_tokens::<f32>(&workspace.intermediate);
    let packed = pass.packed();
    let mut walk = Walk { pass, stage: 0 };
    unsafe {
        let (norm, first) = (model.embedding_norm(), model.first_linear());
        walk.blocks::<I>(
            num_tokens,
            #[inline(always)]
            |start, rows| {
                for token in start..start + rows {
                    let row = hidden_states.at(0, token);
                    embed::<I>(pass, token, row);
                    add_norm::<I>(row, None, &norm);
                    // Behind an odd number of panels, packing reads one more.
                    context.at(sizes.attention_panels, token).write_bytes(0, PANEL);
                }
                pack_block::<I>(first.dtype, hidden_states, start, rows, first.words, packed);
            },
        );
        if let Some(projection) = model.projection() {
            walk.multiply::<I>(&projection, num_tokens, Target::F32(update));
            let next = model.layer(0).query_key_value;
            walk.blocks::<I>(
                num_tokens,
                #[inline(always)]
                |start, rows| {
                    for token in start..start + rows {
                        for panel in 0..sizes.row_stride / PANEL {
                            let target = hidden_states.at(panel, token);
                            if panel < projection.num_panels() {
                                target.copy_from_nonoverlapping(update.at(panel, token), PANEL);
                            } else {
                                target.write_bytes(0, PANEL);
                            }
                        }
                    }
                    pack_block::<I>(next.dtype, hidden_states, start, rows, next.words, packed);
                },
            );
        }
        for index in 0..model.num_layers() {
            let layer = model.layer(index);
            let next =
                (index + 1 < model.num_layers()).then(|| model.layer(index + 1).query_key_value);
            attend::<I>(&mut walk, &layer.query_key_value, context, scratch);
            let linear = layer.attention_output;
            walk.blocks::<I>(
                num_tokens,
                #[inline(always)]
                |start, rows| {
                    pack_block::<I>(linear.dtype, context, start, rows, linear.words, packed);
                },
            );
            walk.multiply::<I>(&linear, num_tokens, Target::F32(update));
            add_and_pack::<I>(&mut walk, &layer.attention_norm, Some(layer.intermediate));
            walk.multiply::<I>(&layer.intermediate, num_tokens, Target::F32(intermediate));
            let linear = layer.output;
            walk.blocks::<I>(
                num_tokens,
                #[inline(always)]
                |start, rows| {
                    pack_block::<I>(linear.dtype, intermediate, start, rows, linear.words, packed);
                },
            );
            walk.multiply::<I>(&linear, num_tokens, Target::F32(update));
            add_and_pack::<I>(&mut walk, &layer.output_norm, next);
        }
        match model.readout() {
            Readout::HiddenStates => {}
            Readout::Pooled(pooling) => walk.stage::<I>(tokens.batch_size(), |sequence| {
                pool(pass, pooling, sequence);
            }),
            Readout::FirstToken { num_layers, .. } => {
                read_first_tokens::<I>(&mut walk, num_layers);
            }
        }
    }
    pass.stages.end();
}

/// The sum of the rows that token `token` has in the tables.
#[inline(always)]
unsafe fn embed<I: Isa>(pass: &Pass, token: usize, row: *mut f32) {
    let tables = pass.model.tables();
    let ids = [&pass.tokens.input_ids, &pass.tokens.position_ids, &pass.tokens.token_type_ids];
    for (index, (table, ids)) in tables.iter().zip(ids).enumerate() {
        if let Some(table) = table {
            // SAFETY: a row of the hidden states is at least as wide as the tables.
            unsafe { add_table_row::<I>(table, ids[token] as usize, row, index == 0) };
        }
    }
}

/// Queries, keys and values of all tokens, then each head of each sequence.
#[inline(always)]
unsafe fn attend<I: Isa>(
    walk: &mut Walk<'_>,
    weights: &LinearWeights<'_>,
    context: Panels<f32>,
    scratch: &mut Scratch,
) {
    let pass = walk.pass;
    let sizes = pass.model.sizes();
    let num_tokens = pass.tokens.num_tokens();
    let buffer = &pass.workspace.query_key_value;
    let exact = weights.dtype == Dtype::F32 || !I::BF16_PRODUCTS;
    let (dtype, target) = if exact {
        (Dtype::F32, Target::F32(pass.of_tokens(buffer)))
    } else {
        (Dtype::Bf16, Target::Bf16(pass.of_tokens(buffer)))
    };
    let element_bytes = size_of::<u32>() / dtype.per_word();
    let query_key_value = Panels {
        start: buffer.pointer::<u8>(),
        panel_stride: num_tokens * PANEL * element_bytes,
        row_stride: PANEL * element_bytes,
    };
    let biases = 2 * pass.tokens.max_seqlen().max(1) - 1;
    unsafe {
        walk.multiply::<I>(weights, num_tokens, target);
        walk.stage::<I>(
            pass.tokens.batch_size() * sizes.num_heads,
            #[inline(always)]
            |chunk| {
                let (start, seq_len) = pass.tokens.sequence(chunk / sizes.num_heads);
                let head = chunk % sizes.num_heads;
                let bias = pass.workspace.position_bias.chunks_exact(biases).nth(head);
                let head = Head {
                    query_key_value,
                    dtype,
                    head_panels: sizes.attention_panels / sizes.num_heads,
                    num_heads: sizes.num_heads,
                    head,
                    start,
                    seq_len,
                    scale: sizes.attention_scale,
                    bias: bias.map(|bias| &bias[biases / 2 + 1 - seq_len..]),
                };
                attention::attend::<I>(&head, scratch, context);
            },
        );
    }
}

/// Adds the update to the hidden states, normalizes them, and packs them for layer `next`.
#[inline(always)]
unsafe fn add_and_pack<I: Isa>(
    walk: &mut Walk<'_>,
    norm: &NormWeights<'_>,
    next: Option<LinearWeights<'_>>,
) {
    let pass = walk.pass;
    let update = pass.of_tokens::<f32>(&pass.workspace.update);
    let hidden_states = pass.hidden_states();
    walk.blocks::<I>(
        pass.tokens.num_tokens(),
        #[inline(always)]
        |start, rows| unsafe {
            for token in start..start + rows {
                add_norm::<I>(hidden_states.at(0, token), Some((update, token)), norm);
            }
            if let Some(next) = next {
                pack_block::<I>(next.dtype, hidden_states, start, rows, next.words, pass.packed());
            }
        },
    );
}

/// Makes one row of the hidden states of a sequence.
unsafe fn pool(pass: &Pass, pooling: Pooling, sequence: usize) {
    let (start, seq_len) = pass.tokens.sequence(sequence);
    let row_stride = pass.model.sizes().row_stride;
    let num_rows = match pooling {
        Pooling::Mean => seq_len,
        Pooling::First => 1,
    };
    // SAFETY: the hidden states have these rows, and nobody writes them any more; the pooled row
    // is this chunk's.
    unsafe {
        let target = std::slice::from_raw_parts_mut(pass.pooled().at(0, sequence), row_stride);
        target.fill(0.0);
        for token in start..start + num_rows {
            let row = std::slice::from_raw_parts(pass.hidden_states().at(0, token), row_stride);
            target.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        target.iter_mut().for_each(|sum| *sum /= num_rows as f32);
    }
}

/// Runs the layers of the head on the first token of each sequence.
#[inline(always)]
unsafe fn read_first_tokens<I: Isa>(walk: &mut Walk<'_>, num_layers: usize) {
    let pass = walk.pass;
    let batch_size = pass.tokens.batch_size();
    let row_stride = pass.model.sizes().row_stride;
    for index in 0..num_layers {
        let linear = pass.model.head_layer(index);
        let source = if index == 0 { pass.pooled() } else { pass.head(index) };
        walk.blocks::<I>(
            batch_size,
            #[inline(always)]
            |start, rows| unsafe {
                for sequence in (start..start + rows).take_while(|_| index == 0) {
                    let token = pass.tokens.sequence(sequence).0;
                    let row = pass.hidden_states().at(0, token);
                    source.at(0, sequence).copy_from_nonoverlapping(row, row_stride);
                }
                pack_block::<I>(linear.dtype, source, start, rows, linear.words, pass.packed());
            },
        );
        let target = Target::F32(pass.head(index + 1));
        // SAFETY: as for `join`.
        unsafe { walk.multiply::<I>(&linear, batch_size, target) };
    }
}
