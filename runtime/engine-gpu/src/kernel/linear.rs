use bytemuck::NoUninit;

use super::{Address, Boxes, Dtype, Launch, WideTile, sm90_linear::Sm90Linear};
use crate::device::{Device, DeviceError};

/// Rows of weights and hidden states are padded with zeros to a multiple of so many elements.
pub const STRIDE: usize = 64;

/// What follows a linear layer, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, NoUninit)]
#[repr(u32)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `x/2 · (1 + erf(x/√2))`
    Gelu,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`
    GeluTanh,
    /// `max(x, 0)`
    Relu,
    /// `tanh(x)`
    Tanh,
}

/// Arguments of `linear.cu`.
#[derive(Debug, Clone, Copy, NoUninit)]
#[repr(C)]
pub struct Linear {
    /// `u32`: how many there are.
    pub num_rows: Address,
    /// `u32` `[num_rows]`: which row of the input each is; row by row, if none.
    pub input_rows: Address,
    /// `[.., in_stride]`
    pub input: Address,
    /// `[out_stride, in_stride]`, zero behind the last of each
    pub weight: Address,
    /// `f32` `[out_stride]`, zero behind the last
    pub bias: Address,
    /// `[num_rows, out_stride]`, added behind the activation, or none
    pub residual: Address,
    /// `[num_rows, out_stride]`; may be the residual
    pub output: Address,
    /// `f32` `[num_rows, out_features]`, written in place of `output`, or none
    pub logits: Address,
    /// A multiple of [`STRIDE`].
    pub in_stride: i32,
    /// A multiple of [`STRIDE`].
    pub out_stride: i32,
    /// Of `logits`.
    pub out_features: i32,
    /// Of the sums.
    pub activation: Activation,
}

/// What a block computes of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 by 128: reads least.
    Large,
    /// 64 by 64
    Medium,
    /// 16 by 64
    Small,
}

impl Tile {
    /// All of them, largest first.
    pub const ALL: [Self; 3] = [Self::Large, Self::Medium, Self::Small];

    /// The largest of which there are enough to keep all multiprocessors busy.
    #[must_use]
    pub fn choose(max_rows: u32, out_stride: u32, num_multiprocessors: u32) -> Self {
        let is_enough = |tile: &Self| {
            let [across, down] = tile.grid(max_rows, out_stride);
            across * down >= num_multiprocessors
        };
        Self::ALL.into_iter().find(is_enough).unwrap_or(Self::Small)
    }

    /// `[rows, columns]`
    #[must_use]
    pub fn size(self) -> [u32; 2] {
        match self {
            Self::Large => [128, 128],
            Self::Medium => [64, 64],
            Self::Small => [16, 64],
        }
    }

    fn grid(self, max_rows: u32, out_stride: u32) -> [u32; 2] {
        let [rows, columns] = self.size();
        [out_stride.div_ceil(columns), max_rows.div_ceil(rows)]
    }

    fn num_threads(self) -> u32 {
        match self {
            Self::Large => 256,
            Self::Medium | Self::Small => 128,
        }
    }
}

impl Linear {
    /// For up to `max_rows`, by the kernel and the tile that are fastest on `device`.
    ///
    /// # Errors
    ///
    /// As [`Device::tensor_map`].
    pub fn choose_launch(
        &self,
        device: &impl Device,
        dtype: Dtype,
        max_rows: u32,
    ) -> Result<Launch, DeviceError> {
        let num_multiprocessors = device.num_multiprocessors();
        let out_stride = self.out_stride.unsigned_abs();
        let is_plain = self.input_rows == Address::NONE && self.logits == Address::NONE;
        let wide = match device.has_sm90() && is_plain {
            true => WideTile::choose(max_rows, out_stride, num_multiprocessors),
            false => None,
        };
        match wide {
            Some(tile) => self.wide_launch(device, dtype, tile, max_rows, num_multiprocessors),
            None => {
                let tile = Tile::choose(max_rows, out_stride, num_multiprocessors);
                Ok(self.launch(dtype, tile, max_rows))
            }
        }
    }

    /// For up to `max_rows`, by `sm90_linear.cu`, in up to `max_blocks`. Reads no `input_rows` and writes no
    /// `logits`; the input has `max_rows`, of which those behind the last may be anything.
    ///
    /// # Errors
    ///
    /// As [`Device::tensor_map`].
    pub fn wide_launch(
        &self,
        device: &impl Device,
        dtype: Dtype,
        tile: WideTile,
        max_rows: u32,
        max_blocks: u32,
    ) -> Result<Launch, DeviceError> {
        let [in_stride, out_stride] = [self.in_stride, self.out_stride].map(i32::unsigned_abs);
        let map = |matrix, num_rows, box_rows| {
            device.tensor_map(&Boxes { matrix, num_rows, stride: in_stride, dtype, box_rows })
        };
        let linear = Sm90Linear {
            input: map(self.input, max_rows, tile.rows())?,
            weight: map(self.weight, out_stride, tile.columns())?,
            num_rows: self.num_rows,
            bias: self.bias,
            residual: self.residual,
            output: self.output,
            in_stride: self.in_stride,
            out_stride: self.out_stride,
            activation: self.activation,
            padding: [0; 21],
        };
        Ok(linear.launch(dtype, tile, max_rows, max_blocks))
    }

    /// For up to `max_rows`, by `linear.cu`.
    #[must_use]
    pub fn launch(&self, dtype: Dtype, tile: Tile, max_rows: u32) -> Launch {
        let kernel = match tile {
            Tile::Large => dtype.choose("linear_large_f16", "linear_large_bf16"),
            Tile::Medium => dtype.choose("linear_medium_f16", "linear_medium_bf16"),
            Tile::Small => dtype.choose("linear_small_f16", "linear_small_bf16"),
        };
        let grid = tile.grid(max_rows, self.out_stride.unsigned_abs());
        Launch::new(kernel, grid, tile.num_threads(), self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_are_as_large_as_leaves_no_multiprocessor_idle() {
        let cases = [
            // 44 rows of tiles by 6 columns.
            (5632, 768, 132, Tile::Large),
            (1024, 768, 132, Tile::Medium),
            (1024, 768, 40, Tile::Large),
            (64, 768, 132, Tile::Small),
            (1, 64, 132, Tile::Small),
        ];
        for (max_rows, out_stride, num_multiprocessors, expected) in cases {
            let tile = Tile::choose(max_rows, out_stride, num_multiprocessors);
            assert_eq!(tile, expected, "{max_rows} rows, {out_stride} columns");
        }
    }

    #[test]
    fn every_row_and_column_has_a_block() {
        let grid = |tile: Tile, rows, columns| tile.grid(rows, columns);
        assert_eq!(grid(Tile::Large, 128, 128), [1, 1]);
        assert_eq!(grid(Tile::Large, 129, 192), [2, 2]);
        assert_eq!(grid(Tile::Small, 17, 64), [1, 2]);
    }
}
