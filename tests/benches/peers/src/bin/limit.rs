//! The machine's own limit: arithmetic per second in f32, bf16 and int8, and bytes per second from
//! memory, on a number of threads at once.
//!
//! ```text
//! limit 2
//! {"f32_per_s":2.3e11,"bf16_per_s":4.6e11,"int8_per_s":9.2e11,"bytes_per_s":3.4e10}
//! ```
//!
//! A multiply and an add are two operations. Each figure is the best of some bursts, each long
//! enough for the clock to settle: what the cores can sustain when nothing disturbs them.

use std::{env, error::Error, hint::black_box, sync::Barrier, thread, time::Instant};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the limit is only measured on x86-64");

/// Runs some rounds of arithmetic; gives the number of operations done.
type Kernel = fn(u64) -> u64;

const BURSTS: usize = 6;
const BURST_SECS: f64 = 0.15;
/// Far over any cache.
const MEMORY_BYTES_PER_THREAD: usize = 256 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let num_threads = env::args().nth(1).ok_or("usage: limit <threads>")?.parse()?;
    let kernels = x86::kernels();
    let rate = |kernel| best_rate(num_threads, || repeat(kernel));
    println!(
        r#"{{"f32_per_s":{:e},"bf16_per_s":{:e},"int8_per_s":{:e},"bytes_per_s":{:e}}}"#,
        rate(kernels.f32),
        rate(kernels.bf16),
        rate(kernels.int8),
        best_rate(num_threads, memory_reader),
    );
    Ok(())
}

/// The highest sum over `num_threads` threads of operations per second, over all bursts.
///
/// `start` makes what a thread then runs once a burst.
fn best_rate<B: FnMut() -> u64>(num_threads: usize, start: impl Fn() -> B + Sync) -> f64 {
    let barrier = Barrier::new(num_threads);
    let bursts = || {
        let mut burst = start();
        let rates = (0..BURSTS).map(|_| {
            barrier.wait();
            let started = Instant::now();
            burst() as f64 / started.elapsed().as_secs_f64()
        });
        rates.collect::<Vec<_>>()
    };
    let threads: Vec<Vec<f64>> = thread::scope(|scope| {
        let handles: Vec<_> = (0..num_threads).map(|_| scope.spawn(bursts)).collect();
        handles.into_iter().filter_map(|handle| handle.join().ok()).collect()
    });
    let sums = (0..BURSTS).map(|burst| threads.iter().map(|rates| rates[burst]).sum());
    sums.fold(0.0, f64::max)
}

/// Runs `kernel` for about the length of a burst.
fn repeat(kernel: Kernel) -> impl FnMut() -> u64 {
    const ROUNDS: u64 = 100_000;
    move || {
        let started = Instant::now();
        let mut operations = 0;
        while started.elapsed().as_secs_f64() < BURST_SECS {
            operations += kernel(ROUNDS);
        }
        operations
    }
}

/// Reads a buffer of its own once; gives its size in bytes.
fn memory_reader() -> impl FnMut() -> u64 {
    // Not zeros: those would all be one page of the kernel's.
    let buffer = vec![1_u64; MEMORY_BYTES_PER_THREAD / size_of::<u64>()];
    move || {
        black_box(x86::sum(&buffer));
        MEMORY_BYTES_PER_THREAD as u64
    }
}

mod x86 {
    use std::arch::x86_64::*;

    use super::{Kernel, black_box};

    /// Chains of dependent instructions that hide each other's latency.
    const CHAINS: usize = 12;

    /// The fastest instruction for each type that this CPU has.
    pub(super) struct Kernels {
        pub(super) f32: Kernel,
        pub(super) bf16: Kernel,
        pub(super) int8: Kernel,
    }

    /// Panics on a CPU without AVX2 and FMA.
    pub(super) fn kernels() -> Kernels {
        assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"), "no AVX2");
        // SAFETY: AVX2 and FMA were found.
        let (f32_avx2, int8_avx2): (Kernel, Kernel) =
            (|rounds| unsafe { f32_avx2(rounds) }, |rounds| unsafe { int8_avx2(rounds) });
        let mut kernels = Kernels { f32: f32_avx2, bf16: f32_avx2, int8: int8_avx2 };
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the feature was found.
            kernels.f32 = |rounds| unsafe { f32_avx512(rounds) };
            kernels.bf16 = kernels.f32;
        }
        if is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the feature was found.
            kernels.bf16 = |rounds| unsafe { bf16_avx512(rounds) };
        }
        if is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the feature was found.
            kernels.int8 = |rounds| unsafe { int8_avx512(rounds) };
        }
        kernels
    }

    /// Defines a kernel of `CHAINS` accumulators, each taken through one step a round.
    macro_rules! kernel {
        ($name:ident, $features:literal, $zero:expr, $operand:expr, $step:expr, $operations:literal) => {
            #[target_feature(enable = $features)]
            fn $name(rounds: u64) -> u64 {
                let operand = black_box($operand);
                let mut sums = [$zero; CHAINS];
                for _ in 0..rounds {
                    for sum in &mut sums {
                        *sum = $step(*sum, operand);
                    }
                }
                black_box(sums);
                rounds * CHAINS as u64 * $operations
            }
        };
    }

    kernel!(
        f32_avx2,
        "avx2,fma",
        _mm256_setzero_ps(),
        _mm256_set1_ps(0.5),
        |sum, x| _mm256_fmadd_ps(x, x, sum),
        16
    );
    kernel!(
        int8_avx2,
        "avx2",
        _mm256_setzero_si256(),
        _mm256_set1_epi8(1),
        |sum, x| {
            // `sum` is an operand so that the products are not the same every round.
            let pairs = _mm256_maddubs_epi16(sum, x);
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, x))
        },
        64
    );
    kernel!(
        f32_avx512,
        "avx512f",
        _mm512_setzero_ps(),
        _mm512_set1_ps(0.5),
        |sum, x| _mm512_fmadd_ps(x, x, sum),
        32
    );
    kernel!(
        bf16_avx512,
        "avx512f,avx512bf16",
        _mm512_setzero_ps(),
        _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5), _mm512_set1_ps(0.5)),
        |sum, x| _mm512_dpbf16_ps(sum, x, x),
        64
    );
    kernel!(
        int8_avx512,
        "avx512f,avx512vnni",
        _mm512_setzero_si512(),
        _mm512_set1_epi8(1),
        |sum, x| _mm512_dpbusd_epi32(sum, x, x),
        128
    );

    /// The sum of `numbers`, in vectors as wide as AVX2's.
    pub(super) fn sum(numbers: &[u64]) -> u64 {
        #[target_feature(enable = "avx2")]
        fn sum(numbers: &[u64]) -> u64 {
            numbers.iter().fold(0, |sum: u64, &number| sum.wrapping_add(number))
        }
        // SAFETY: `kernels` found AVX2 before anything was measured.
        unsafe { sum(numbers) }
    }
}
