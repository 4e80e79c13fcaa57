//! Softmax attention of one head over one sequence, all in one thread's cache.
//!
//! ```text
//! keys, transposed ┐
//! block of queries ┴─> scores ─> weights ─┐
//!                 values, in word order ──┴─> context
//! ```

use super::{
    buffer::Buffer,
    isa::{Dtype, Isa, PANEL, Prefetch},
    lanes::{Lanes, exp2},
    linear::{MAX_ROWS, Panels, block_rows, num_blocks},
};

/// One head of one sequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    /// Queries, keys and values of all tokens, `f32` or bf16, cut into panels: those of all heads'
    /// queries, then keys, then values.
    pub(crate) query_key_value: Panels<u8>,
    pub(crate) dtype: Dtype,
    /// Panels of a head; `head_dim` is padded with zeros to as many.
    pub(crate) head_panels: usize,
    pub(crate) num_heads: usize,
    pub(crate) head: usize,
    /// First token of the sequence, and its number of tokens.
    pub(crate) start: usize,
    pub(crate) seq_len: usize,
    /// What scores are multiplied with: `1/√head_dim`.
    pub(crate) scale: f32,
    /// What is added to the scores: entry `seq_len - 1 + distance`, if there is a bias.
    pub(crate) bias: Option<&'a [f32]>,
}

/// Working memory of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    keys: Buffer,
    values: Buffer,
    queries: Buffer,
    scores: Buffer,
    weights: Buffer,
    packed_weights: Buffer,
}

/// Writes the head's context into `context`, cut into panels like the queries.
///
/// # Safety
///
/// The CPU is an `I`; the matrices have the panels and rows that `head` names; nobody else touches
/// those of `context`.
#[inline(always)]
pub(crate) unsafe fn attend<I: Isa>(head: &Head<'_>, scratch: &mut Scratch, context: Panels<f32>) {
    let Head { dtype, head_panels, seq_len, .. } = *head;
    let panel_words = PANEL / dtype.per_word();
    let head_words = head_panels * panel_words;
    let groups = seq_len.div_ceil(PANEL);
    let weight_words = seq_len.div_ceil(dtype.per_word());
    let keys = scratch.keys.reserve::<u32>(groups * PANEL * head_words);
    let values = scratch.values.reserve::<u32>(head_panels * weight_words * PANEL);
    let queries = scratch.queries.reserve::<u32>(MAX_ROWS * head_words);
    let scores = scratch.scores.reserve::<f32>(MAX_ROWS * groups * PANEL);
    let weights = scratch.weights.reserve::<u32>(MAX_ROWS * groups * PANEL);
    let packed_weights = scratch.packed_weights.reserve::<u32>(MAX_ROWS * groups * PANEL);
    let none = Prefetch { start: queries.cast(), step_bytes: 0 };
    unsafe {
        pack_keys::<I>(head, keys);
        let packed_values = pack_values::<I>(head, values);
        for block in 0..num_blocks::<I>(seq_len) {
            let (start, rows) = block_rows::<I>(seq_len, block);
            let kernel = I::tile(dtype, rows);
            for panel in 0..head_panels {
                let source = head.row(0, panel, start);
                for word in (0..panel_words).step_by(16) {
                    let target = queries.add((panel * panel_words + word) * rows);
                    I::transpose(source.add(word), panel_words, rows, target, rows);
                }
            }
            for group in 0..groups {
                let keys = keys.add(group * PANEL * head_words);
                kernel(head_words, queries, keys, none, scores.add(group * rows * PANEL));
            }
            let mut inverse_sums = [0.0; MAX_ROWS];
            for (row, inverse_sum) in inverse_sums.iter_mut().enumerate().take(rows) {
                let scores =
                    Panels { start: scores, panel_stride: rows * PANEL, row_stride: PANEL };
                *inverse_sum =
                    1.0 / softmax_row::<I>(head, scores, row, start + row, weights, rows);
            }
            for word in (0..groups * panel_words).step_by(16) {
                let source =
                    weights.add(word / panel_words * rows * panel_words + word % panel_words);
                I::transpose(source, panel_words, rows, packed_weights.add(word * rows), rows);
            }
            let mut tile = [0.0f32; MAX_ROWS * PANEL];
            for panel in 0..head_panels {
                let (values, stride) = packed_values;
                let values = values.add(panel * stride);
                kernel(weight_words, packed_weights, values, none, tile.as_mut_ptr());
                let target = head.head * head_panels + panel;
                for (row, &inverse_sum) in inverse_sums.iter().enumerate().take(rows) {
                    let target = context.at(target, head.start + start + row);
                    for column in (0..PANEL).step_by(I::Lanes::LEN) {
                        I::Lanes::load(tile.as_ptr().add(row * PANEL + column))
                            .mul(I::Lanes::splat(inverse_sum))
                            .store(target.add(column));
                    }
                }
            }
        }
    }
}

impl Head<'_> {
    /// Row `row` of the sequence in panel `panel` of the head's queries (0), keys (1) or
    /// values (2).
    #[inline(always)]
    unsafe fn row(&self, which: usize, panel: usize, row: usize) -> *const u32 {
        let panel = (which * self.num_heads + self.head) * self.head_panels + panel;
        // SAFETY: the caller's matrix has the panel and the row.
        unsafe { self.query_key_value.at(panel, self.start + row).cast() }
    }
}

/// Keys as panels: group `g` is `[head_words, PANEL]`, a key a column. Columns behind the last key
/// are left as they are; nobody reads their scores.
#[inline(always)]
unsafe fn pack_keys<I: Isa>(head: &Head<'_>, keys: *mut u32) {
    let panel_words = PANEL / head.dtype.per_word();
    for first in (0..head.seq_len).step_by(16) {
        let rows = (head.seq_len - first).min(16);
        let group = first / PANEL * PANEL * head.head_panels * panel_words;
        for panel in 0..head.head_panels {
            for word in (0..panel_words).step_by(16) {
                unsafe {
                    let source = head.row(1, panel, first).add(word);
                    let target =
                        keys.add(group + (panel * panel_words + word) * PANEL + first % PANEL);
                    I::transpose(source, panel_words, rows, target, PANEL);
                }
            }
        }
    }
}

/// Values as panels `[weight_words, PANEL]`, and the words from one to the next. `f32` rows are
/// such panels as they stand; bf16 rows are paired.
#[inline(always)]
unsafe fn pack_values<I: Isa>(head: &Head<'_>, values: *mut u32) -> (*const u32, usize) {
    unsafe {
        if head.dtype == Dtype::F32 {
            return (head.row(2, 0, 0), head.query_key_value.panel_stride / size_of::<f32>());
        }
        let pairs = head.seq_len.div_ceil(2);
        let zeros = [0u16; PANEL];
        for panel in 0..head.head_panels {
            for pair in 0..pairs {
                let even = head.row(2, panel, 2 * pair).cast();
                let odd = if 2 * pair + 1 < head.seq_len {
                    head.row(2, panel, 2 * pair + 1).cast()
                } else {
                    zeros.as_ptr()
                };
                I::zip(even, odd, values.add((panel * pairs + pair) * PANEL));
            }
        }
        (values, pairs * PANEL)
    }
}

/// Turns one row of scores into attention weights that are still to be divided by their sum,
/// which it returns. Weights behind the last key are zeros.
#[inline(always)]
unsafe fn softmax_row<I: Isa>(
    head: &Head<'_>,
    scores: Panels<f32>,
    row: usize,
    query: usize,
    weights: *mut u32,
    rows: usize,
) -> f32 {
    /// Stands for minus infinity where there is no key.
    const NO_KEY: f32 = -1e30;
    let len = I::Lanes::LEN;
    let seq_len = head.seq_len;
    let panel_words = PANEL / head.dtype.per_word();
    unsafe {
        let scale = I::Lanes::splat(head.scale * std::f32::consts::LOG2_E);
        let mut largest = I::Lanes::splat(NO_KEY);
        for first in (0..seq_len.div_ceil(PANEL) * PANEL).step_by(len) {
            let elements = scores.at(first / PANEL, row).add(first % PANEL);
            let present = seq_len.saturating_sub(first).min(len);
            let mut values = I::Lanes::load(elements).mul(scale);
            if let Some(bias) = head.bias {
                let bias = bias.as_ptr().wrapping_add(seq_len - 1 + first - query);
                let bias = I::Lanes::load_first(bias, present, 0.0);
                values = bias.mul_add(I::Lanes::splat(std::f32::consts::LOG2_E), values);
            }
            if present < len {
                values.store(elements);
                values = I::Lanes::load_first(elements, present, NO_KEY);
            }
            values.store(elements);
            largest = largest.max(values);
        }
        let largest = largest.largest();
        if largest <= NO_KEY {
            // Every score is minus infinity: there is nothing to divide by.
            return f32::NAN;
        }
        let largest = I::Lanes::splat(largest);
        let mut sum = I::Lanes::splat(0.0);
        for first in (0..seq_len.div_ceil(PANEL) * PANEL).step_by(len) {
            let values = I::Lanes::load(scores.at(first / PANEL, row).add(first % PANEL));
            let power = exp2(values.sub(largest));
            sum = sum.add(power);
            let target = weights.add((first / PANEL * rows + row) * panel_words);
            match head.dtype {
                Dtype::F32 => power.store(target.cast::<f32>().add(first % PANEL)),
                Dtype::Bf16 | Dtype::Int8 => {
                    power.store_bf16(target.cast::<u16>().add(first % PANEL));
                }
            }
        }
        sum.sum()
    }
}
