use bytemuck::Pod;
use engine_gpu::kernel::Dtype;
use half::{bf16, f16};

/// What kernels take, between this and `f32`.
pub trait Element: Pod {
    const DTYPE: Dtype;
    /// How far a row may be off, of its length: rounding of the result (a half of the last bit, 2^-12 or
    /// 2^-9, at most) and of what lies between.
    const TOLERANCE: f64;
    fn rounded(value: f32) -> Self;
    fn value(self) -> f32;

    /// `values`, each a number that an element can be.
    fn all(values: &[f32]) -> Vec<Self> {
        values.iter().map(|&value| Self::rounded(value)).collect()
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
    const TOLERANCE: f64 = 1e-3;
    fn rounded(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
    const TOLERANCE: f64 = 8e-3;
    fn rounded(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn value(self) -> f32 {
        self.to_f32()
    }
}
