//! The operators of an encoder in their order, each a stage that threads share.

use engine::{EngineError, Pooling};

use super::{
    attention::{self, Head, Scratch},
    isa::{Dtype, Isa, PANEL},
    linear::{LinearWeights, Panels, Target, block_rows, multiply_panel, num_blocks, pack_block},
    norm::{NormWeights, add_norm, add_table_row},
    pass::Pass,
};
use crate::{model::Readout, pool::larger};

/// Chunks that each thread should find in a stage of linear algebra, so that one that is late
/// leaves little undone.
const CHUNKS_PER_THREAD: usize = 4;

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
            // SAFETY: the walk is in `run::<I>`, whose caller has found the features.
            unsafe {
                I::run(
                    #[inline(always)]
                    || chunk(index),
                )
            };
        });
        self.stage += 1;
    }

    /// Waits for weights. If they never come, the walk goes on over what is there, and the pass
    /// gives nothing.
    fn arrive(&self, outcome: Result<(), EngineError>) {
        if outcome.is_err() {
            self.pass.stages.fail();
        }
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
pub(super) unsafe fn run<I: Isa>(pass: &Pass, scratch: &mut Scratch) {
    let Pass { model, tokens, workspace, .. } = pass;
    let sizes = model.sizes();
    let num_tokens = tokens.num_tokens();
    let hidden_states = pass.hidden_states();
    let update = pass.of_tokens::<f32>(&workspace.update);
    let context = pass.of_tokens::<f32>(&workspace.context);
    let intermediate = pass.of_tokens::<f32>(&workspace.intermediate);
    let packed = pass.packed();
    let mut walk = Walk { pass, stage: 0 };
    walk.arrive(model.wait_for_embeddings());
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
            walk.arrive(model.wait_for_layer(index));
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
        walk.arrive(model.wait_for_head());
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
    let end = start + seq_len;
    let (first, rest) = match pooling {
        Pooling::Mean | Pooling::Max => (start, start + 1..end),
        Pooling::Cls => (start, end..end),
        Pooling::Last => (end - 1, end..end),
    };
    // SAFETY: the hidden states have these rows, and nobody writes them any more; the pooled row
    // is this chunk's.
    unsafe {
        let target = std::slice::from_raw_parts_mut(pass.pooled().at(0, sequence), row_stride);
        let row = |token| {
            std::slice::from_raw_parts(pass.hidden_states().at(0, token).cast_const(), row_stride)
        };
        target.copy_from_slice(row(first));
        for token in rest {
            let values = target.iter_mut().zip(row(token));
            match pooling {
                Pooling::Max => values.for_each(|(most, value)| *most = larger(*most, *value)),
                _ => values.for_each(|(sum, value)| *sum += value),
            }
        }
        if pooling == Pooling::Mean {
            target.iter_mut().for_each(|sum| *sum /= seq_len as f32);
        }
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
        // SAFETY: as for `run`.
        unsafe { walk.multiply::<I>(&linear, batch_size, target) };
    }
}
