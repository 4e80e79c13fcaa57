//! Linear layers: rows are packed into blocks, a block meets a panel of weights in a tile, and the
//! tile is scaled, biased, activated and stored.

use encoder::{Activation, SEGMENT};

use super::{
    isa::{Dtype, Isa, PANEL, Prefetch},
    lanes::{Lanes, gelu, gelu_rounded, gelu_tanh, tanh},
};

/// Rows of the largest tile of any instruction set.
pub(crate) const MAX_ROWS: usize = 16;

/// Where row `row` of column `PANEL * panel` lies: `start + panel * panel_stride + row *
/// row_stride`, in elements. Both row-major matrices and ones cut into panels are such.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Panels<T> {
    pub(crate) start: *mut T,
    pub(crate) panel_stride: usize,
    pub(crate) row_stride: usize,
}

impl<T> Panels<T> {
    /// A matrix of `num_rows` rows, cut into panels.
    pub(crate) fn cut(start: *mut T, num_rows: usize) -> Self {
        Self { start, panel_stride: num_rows * PANEL, row_stride: PANEL }
    }

    /// A row-major matrix.
    pub(crate) fn row_major(start: *mut T, row_stride: usize) -> Self {
        Self { start, panel_stride: PANEL, row_stride }
    }

    /// # Safety
    ///
    /// The matrix has that panel and row.
    #[inline(always)]
    pub(crate) unsafe fn at(self, panel: usize, row: usize) -> *mut T {
        // SAFETY: passed on to the caller.
        unsafe { self.start.add(panel * self.panel_stride + row * self.row_stride) }
    }
}

/// The weights of a linear layer, in panels.
///
/// # Shapes
///
/// - `panels`: `[out_panels, words, PANEL]`, each word `Dtype::per_word` elements along `k`
/// - `bias`, `scales`, `sums`: `[out_panels * PANEL]`; `scales` and `sums` only for
///   [`Dtype::Int8`]: what one step of a weight is worth, and the sum of a column's weights
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinearWeights<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) words: usize,
    pub(crate) panels: &'a [u32],
    pub(crate) bias: &'a [f32],
    pub(crate) scales: &'a [f32],
    pub(crate) sums: &'a [i32],
    pub(crate) activation: Activation,
}

impl LinearWeights<'_> {
    pub(crate) fn num_panels(&self) -> usize {
        self.bias.len() / PANEL
    }
}

/// Rows as the kernels read them: block `b` is `[words, rows of b]` behind the blocks before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PackedRows {
    pub(crate) words: *mut u32,
    /// What one step of each row is worth, for [`Dtype::Int8`].
    pub(crate) scales: *mut f32,
}

/// Where the rows of a tile go.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    F32(Panels<f32>),
    Bf16(Panels<u16>),
}

/// `num_rows` rows cut into blocks of nearly equal size, none above `MAX_ROWS` of the instruction
/// set.
#[inline(always)]
pub(crate) fn num_blocks<I: Isa>(num_rows: usize) -> usize {
    num_rows.div_ceil(I::MAX_ROWS)
}

/// First row and number of rows of block `block`.
#[inline(always)]
pub(crate) fn block_rows<I: Isa>(num_rows: usize, block: usize) -> (usize, usize) {
    let blocks = num_blocks::<I>(num_rows);
    let start = block * num_rows / blocks;
    (start, (block + 1) * num_rows / blocks - start)
}

/// Packs `rows` rows of `source` from `start` on as one block for a layer of `dtype` with `words`
/// words.
///
/// # Safety
///
/// The CPU is an `I`; `source` has the rows and `words` words of columns, a multiple of
/// [`SEGMENT`]; nobody else touches the block.
#[inline(always)]
pub(crate) unsafe fn pack_block<I: Isa>(
    dtype: Dtype,
    source: Panels<f32>,
    start: usize,
    rows: usize,
    words: usize,
    packed: PackedRows,
) {
    unsafe {
        let target = packed.words.add(start * words);
        let num_panels = words * dtype.per_word() / PANEL;
        let mut inverse = [0.0; MAX_ROWS];
        if dtype == Dtype::Int8 {
            for (row, inverse) in inverse.iter_mut().enumerate().take(rows) {
                let largest = largest_magnitude::<I>(source, start + row, num_panels);
                // A row of zeros stays zeros; one with a NaN gets a scale that is NaN.
                *packed.scales.add(start + row) = largest / 127.0;
                *inverse = if largest > 127.0 * f32::MIN_POSITIVE { 127.0 / largest } else { 0.0 };
            }
        }
        let words_per_segment = SEGMENT / dtype.per_word();
        let mut segment = [0u32; MAX_ROWS * 32];
        for index in 0..words / words_per_segment {
            let target = target.add(index * words_per_segment * rows);
            if dtype == Dtype::F32 {
                for part in 0..4 {
                    let words = source.at(2 * index + part / 2, start).add(part % 2 * 16).cast();
                    let target = target.add(part * 16 * rows);
                    I::transpose(words, source.row_stride, rows, target, rows);
                }
                continue;
            }
            for (row, &inverse) in inverse.iter().enumerate().take(rows) {
                let words = segment.as_mut_ptr().add(row * words_per_segment);
                for panel in 0..2 {
                    let source = source.at(2 * index + panel, start + row);
                    for column in (0..PANEL).step_by(I::Lanes::LEN) {
                        let lanes = I::Lanes::load(source.add(column));
                        let element = panel * PANEL + column;
                        if dtype == Dtype::Int8 {
                            lanes
                                .mul(I::Lanes::splat(inverse))
                                .store_i8(I::INT8_OFFSET, words.cast::<u8>().add(element));
                        } else {
                            lanes.store_bf16(words.cast::<u16>().add(element));
                        }
                    }
                }
            }
            for part in (0..words_per_segment).step_by(16) {
                let source = segment.as_ptr().add(part);
                I::transpose(source, words_per_segment, rows, target.add(part * rows), rows);
            }
        }
    }
}

/// Largest magnitude in one row, NaN being the largest of all.
#[inline(always)]
unsafe fn largest_magnitude<I: Isa>(source: Panels<f32>, row: usize, num_panels: usize) -> f32 {
    unsafe {
        let mut largest = I::Lanes::splat(0.0);
        for panel in 0..num_panels {
            let source = source.at(panel, row);
            for column in (0..PANEL).step_by(I::Lanes::LEN) {
                largest = largest.max_magnitude(I::Lanes::load(source.add(column)));
            }
        }
        largest.largest_magnitude()
    }
}

/// Computes one panel of `weights` for the packed rows of all blocks.
///
/// # Safety
///
/// The CPU is an `I`; `packed` holds `num_rows` rows packed for `weights`; `target` has the panel
/// and the rows, and nobody else touches them.
#[inline(always)]
pub(crate) unsafe fn multiply_panel<I: Isa>(
    weights: &LinearWeights<'_>,
    packed: PackedRows,
    num_rows: usize,
    panel: usize,
    target: Target,
) {
    unsafe {
        let panel_words = weights.words * PANEL;
        let columns = weights.panels.as_ptr().add(panel * panel_words);
        let blocks = num_blocks::<I>(num_rows);
        let share_bytes = panel_words * size_of::<u32>() / blocks;
        let mut tile = [0.0f32; MAX_ROWS * PANEL];
        for block in 0..blocks {
            let (start, rows) = block_rows::<I>(num_rows, block);
            // Each block asks for its share of the next panel.
            let prefetch = Prefetch {
                start: columns
                    .wrapping_add(panel_words)
                    .cast::<u8>()
                    .wrapping_add(block * share_bytes),
                step_bytes: PANEL * size_of::<u32>() / blocks,
            };
            let words = packed.words.add(start * weights.words);
            let kernel = I::tile(weights.dtype, rows);
            kernel(weights.words, words, columns, prefetch, tile.as_mut_ptr());
            for row in 0..rows {
                let tile = tile.as_ptr().add(row * PANEL);
                let scale = match weights.dtype {
                    Dtype::Int8 => *packed.scales.add(start + row),
                    Dtype::F32 | Dtype::Bf16 => 1.0,
                };
                for column in (0..PANEL).step_by(I::Lanes::LEN) {
                    let values =
                        finish::<I>(weights, tile.add(column), panel * PANEL + column, scale);
                    match target {
                        Target::F32(rows) => values.store(rows.at(panel, start + row).add(column)),
                        Target::Bf16(rows) => {
                            values.store_bf16(rows.at(panel, start + row).add(column));
                        }
                    }
                }
            }
        }
    }
}

/// Sums of a tile as values of the layer: scaled, biased, activated.
#[inline(always)]
unsafe fn finish<I: Isa>(
    weights: &LinearWeights<'_>,
    sums: *const f32,
    column: usize,
    row_scale: f32,
) -> I::Lanes {
    unsafe {
        let bias = I::Lanes::load(weights.bias.as_ptr().add(column));
        let values = if weights.dtype == Dtype::Int8 {
            let scale =
                I::Lanes::load(weights.scales.as_ptr().add(column)).mul(I::Lanes::splat(row_scale));
            I::Lanes::load_int8_sums(sums.cast(), weights.sums.as_ptr().add(column), I::INT8_OFFSET)
                .mul_add(scale, bias)
        } else {
            I::Lanes::load(sums).add(bias)
        };
        match weights.activation {
            Activation::Identity => values,
            Activation::Gelu if weights.dtype == Dtype::F32 => gelu(values),
            Activation::Gelu => gelu_rounded(values),
            Activation::GeluTanh => gelu_tanh(values),
            Activation::Relu => values.max(I::Lanes::splat(0.0)),
            Activation::Tanh => tanh(values),
        }
    }
}
