use bytemuck::NoUninit;

use super::{Activation, Address, Dtype, Launch};

/// Rows of a tile.
const ROWS: u32 = 128;
const THREADS: u32 = 384;

/// A matrix in the memory of a device, of which boxes are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boxes {
    /// `[num_rows, stride]`
    pub matrix: Address,
    /// Of `matrix`.
    pub num_rows: u32,
    /// A multiple of [`STRIDE`](super::STRIDE).
    pub stride: u32,
    /// Of its elements.
    pub dtype: Dtype,
    /// Of a box, up to 256.
    pub box_rows: u32,
}

impl Boxes {
    /// Of a box: rows of 128 bytes.
    pub const COLUMNS: u32 = 64;
}

/// [`Boxes`] as a device reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(transparent)]
pub struct TensorMap(pub [u64; 16]);

/// Arguments of `sm90_linear.cu`: of [`Linear`](super::Linear), what it reads.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
pub(super) struct Sm90Linear {
    pub(super) input: TensorMap,
    pub(super) weight: TensorMap,
    pub(super) num_rows: Address,
    pub(super) bias: Address,
    pub(super) residual: Address,
    pub(super) output: Address,
    pub(super) in_stride: i32,
    pub(super) out_stride: i32,
    pub(super) activation: Activation,
    /// Up to a multiple of 128 bytes, which a [`TensorMap`] is aligned to.
    pub(super) padding: [u32; 21],
}

/// What a block computes at a time: 128 rows of so many columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WideTile {
    /// Reads less.
    Columns256,
    /// For widths that 256 does not divide.
    Columns192,
}

impl WideTile {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Columns256, Self::Columns192];

    /// The one by which all multiprocessors are done first; none if half of them would have nothing to do.
    #[must_use]
    pub fn choose(max_rows: u32, out_stride: u32, num_multiprocessors: u32) -> Option<Self> {
        let is_enough =
            |tile: &Self| 2 * tile.num_tiles(max_rows, out_stride) >= num_multiprocessors;
        let columns_in_a_row = |tile: &Self| {
            tile.num_tiles(max_rows, out_stride).div_ceil(num_multiprocessors) * tile.columns()
        };
        Self::ALL.into_iter().filter(is_enough).min_by_key(columns_in_a_row)
    }

    /// Of the output, and of a box of the input.
    pub(super) fn rows(self) -> u32 {
        ROWS
    }

    /// Of the output: rows of a box of the weights.
    pub(super) fn columns(self) -> u32 {
        match self {
            Self::Columns256 => 256,
            Self::Columns192 => 192,
        }
    }

    /// Slices of a tile that are in shared memory.
    fn num_stages(self) -> u32 {
        match self {
            Self::Columns256 => 4,
            Self::Columns192 => 5,
        }
    }

    fn num_tiles(self, max_rows: u32, out_stride: u32) -> u32 {
        max_rows.div_ceil(ROWS) * out_stride.div_ceil(self.columns())
    }

    /// With what it takes to align slices, and the two phases of each.
    fn shared_bytes(self) -> u32 {
        let slice = (ROWS + self.columns()) * Boxes::COLUMNS * 2;
        1024 + self.num_stages() * (slice + 16)
    }
}

impl Sm90Linear {
    /// For up to `max_rows`.
    pub(super) fn launch(
        &self,
        dtype: Dtype,
        tile: WideTile,
        max_rows: u32,
        max_blocks: u32,
    ) -> Launch {
        let kernel = match tile {
            WideTile::Columns256 => dtype.choose("sm90_linear_256_f16", "sm90_linear_256_bf16"),
            WideTile::Columns192 => dtype.choose("sm90_linear_192_f16", "sm90_linear_192_bf16"),
        };
        let num_tiles = tile.num_tiles(max_rows, self.out_stride.unsigned_abs());
        let launch = Launch::new(kernel, [num_tiles.min(max_blocks), 1], THREADS, self);
        Launch { shared_bytes: tile.shared_bytes(), ..launch }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_chosen_by_when_the_last_multiprocessor_is_done() {
        use WideTile::{Columns192, Columns256};
        let cases = [
            // 44 rows of tiles by 3 columns: one wave.
            (5632, 768, Some(Columns256)),
            // Two waves, of 256 or of 192.
            (8192, 768, Some(Columns192)),
            (5632, 3072, Some(Columns256)),
            (8448, 384, Some(Columns192)),
            // 12 by 6 tiles, or 12 by 8, which are smaller.
            (1536, 1536, Some(Columns192)),
            (1024, 768, None),
            (64, 3072, None),
        ];
        for (max_rows, out_stride, expected) in cases {
            let tile = WideTile::choose(max_rows, out_stride, 132);
            assert_eq!(tile, expected, "{max_rows} rows, {out_stride} columns");
        }
    }

    #[test]
    fn a_multiprocessor_has_the_shared_memory() {
        for tile in WideTile::ALL {
            assert!(tile.shared_bytes() <= 227 * 1024, "{tile:?}");
        }
        assert_eq!(size_of::<Sm90Linear>() % 128, 0);
    }
}
