//! Vectors of f32 and the functions that are built from them, the same for every instruction set.

use std::f32::consts::LOG2_E;

/// A vector of `f32`s in registers of one instruction set.
///
/// # Safety
///
/// Every method may be called only where the CPU has the features of the implementation, and is
/// always inlined into a function that enables them. Pointers must cover `LEN` elements (or the
/// number said) and need no alignment.
pub(crate) trait Lanes: Copy {
    /// Number of elements.
    const LEN: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(source: *const f32) -> Self;
    unsafe fn store(self, target: *mut f32);
    /// Reads integers, takes `offset` times `sums` from them, and converts the rest.
    unsafe fn load_int8_sums(source: *const i32, sums: *const i32, offset: i32) -> Self;
    /// Reads bf16s and widens them.
    unsafe fn load_bf16(source: *const u16) -> Self;
    /// Rounds to bf16, ties to even.
    unsafe fn store_bf16(self, target: *mut u16);
    /// Reads 8-bit integers and converts them.
    unsafe fn load_i8(source: *const i8) -> Self;
    /// Rounds to integers, ties to even, adds `offset` and keeps the low eight bits of each.
    unsafe fn store_i8(self, offset: i32, target: *mut u8);

    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// The larger; `self` if that is not a number.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller; `self` if that is not a number.
    unsafe fn min(self, other: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// The one with the larger magnitude, as its magnitude; NaN counts as the largest.
    unsafe fn max_magnitude(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `self · 2^exponent` for an integral `exponent` of at most 127; 0 when that underflows.
    unsafe fn scale_by_power(self, exponent: Self) -> Self;
    /// About `1 / self`, within 2⁻²².
    unsafe fn reciprocal(self) -> Self;
    /// Sum of the elements.
    unsafe fn sum(self) -> f32;
    /// Largest element.
    unsafe fn largest(self) -> f32;
    /// [`Lanes::max_magnitude`] of the elements.
    unsafe fn largest_magnitude(self) -> f32;

    /// The first `len` elements, and `fill` behind them.
    #[inline(always)]
    unsafe fn load_first(source: *const f32, len: usize, fill: f32) -> Self {
        debug_assert!(len <= Self::LEN && Self::LEN <= 16);
        let mut elements = [fill; 16];
        // SAFETY: `source` covers `len` elements, `elements` sixteen.
        unsafe {
            std::ptr::copy_nonoverlapping(source, elements.as_mut_ptr(), len);
            Self::load(elements.as_ptr())
        }
    }

    /// Writes the first `len` elements.
    #[inline(always)]
    unsafe fn store_first(self, target: *mut f32, len: usize) {
        debug_assert!(len <= Self::LEN && Self::LEN <= 16);
        let mut elements = [0.0; 16];
        // SAFETY: `target` covers `len` elements, `elements` sixteen.
        unsafe {
            self.store(elements.as_mut_ptr());
            std::ptr::copy_nonoverlapping(elements.as_ptr(), target, len);
        }
    }
}

/// `2^x` for `x` up to 127, within 2 ulp; 0 below -126.
///
/// # Source
///
/// Moshier, Cephes 2.2, `exp2f`.
#[inline(always)]
pub(crate) unsafe fn exp2<L: Lanes>(x: L) -> L {
    // SAFETY: passed on to the caller.
    unsafe {
        let exponent = x.round();
        let rest = x.sub(exponent);
        let mut power = L::splat(1.535_336_2e-4);
        for coefficient in
            [1.339_887_4e-3, 9.618_438e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0]
        {
            power = power.mul_add(rest, L::splat(coefficient));
        }
        power.scale_by_power(exponent)
    }
}

/// `e^x` for `x` up to 88.
#[inline(always)]
pub(crate) unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: passed on to the caller.
    unsafe { exp2(x.mul(L::splat(LOG2_E))) }
}

/// `x/2 · (1 + erf(x/√2))`, within 3e-7 · (1 + |x|).
///
/// # Source
///
/// Abramowitz & Stegun 1964, *Handbook of Mathematical Functions*, 7.1.26.
#[inline(always)]
pub(crate) unsafe fn gelu<L: Lanes>(x: L) -> L {
    // SAFETY: passed on to the caller.
    unsafe {
        let magnitude = x.abs();
        let z = magnitude.mul(L::splat(std::f32::consts::FRAC_1_SQRT_2));
        let t = z.mul_add(L::splat(0.327_591_1), L::splat(1.0)).reciprocal();
        let mut polynomial = L::splat(1.061_405_4);
        for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
            polynomial = polynomial.mul_add(t, L::splat(coefficient));
        }
        let power = exp2(z.mul(z).mul(L::splat(-LOG2_E)));
        let erf = polynomial.mul(t).mul(L::splat(-1.0)).mul_add(power, L::splat(1.0));
        magnitude.mul_add(erf, x).mul(L::splat(0.5))
    }
}

/// [`gelu`] within 1.2e-4 up to 3.8, and within 5e-5 · |x| beyond: enough for what is rounded to 16
/// or 8 bits next, at half the cost.
///
/// # Source
///
/// The odd polynomial of degree 13 with the least largest error of `x · (Φ(x) - 1/2)` on
/// [-3.8, 3.8], by iteratively reweighted least squares.
#[inline(always)]
pub(crate) unsafe fn gelu_rounded<L: Lanes>(x: L) -> L {
    // SAFETY: passed on to the caller.
    unsafe {
        let bounded = x.max(L::splat(-3.8)).min(L::splat(3.8));
        let square = bounded.mul(bounded);
        let mut polynomial = L::splat(3.025_101_5e-8);
        for coefficient in [
            -1.956_837_9e-6,
            5.462_012e-5,
            -8.744_096e-4,
            9.045_662e-3,
            -6.513_253e-2,
            0.398_256_56,
        ] {
            polynomial = polynomial.mul_add(square, L::splat(coefficient));
        }
        polynomial.mul_add(bounded, L::splat(0.5)).mul(x)
    }
}

/// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<L: Lanes>(x: L) -> L {
    // SAFETY: passed on to the caller.
    unsafe {
        // 1 + tanh(u) = 2 / (1 + e^(-2u))
        let cubic = x.mul(x).mul_add(L::splat(0.044_715), L::splat(1.0)).mul(x);
        let u = cubic.mul(L::splat(1.595_769_2)).max(L::splat(-80.0));
        let power = exp(u.mul(L::splat(-1.0)));
        x.mul(power.add(L::splat(1.0)).reciprocal())
    }
}

/// The hyperbolic tangent, within 1e-6.
#[inline(always)]
pub(crate) unsafe fn tanh<L: Lanes>(x: L) -> L {
    // SAFETY: passed on to the caller.
    unsafe {
        // 1 - 2 / (1 + e^(2x)), which is 1 from 10 on and -1 up to -10
        let bounded = x.max(L::splat(-10.0)).min(L::splat(10.0));
        let power = exp(bounded.add(bounded));
        power.add(L::splat(1.0)).reciprocal().mul_add(L::splat(-2.0), L::splat(1.0))
    }
}
