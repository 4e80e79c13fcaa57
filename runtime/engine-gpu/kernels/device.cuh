// The words that kernels are written in. One source for two targets: a GPU, and the emulator in
// tests/emulator, which defines EMULATED and means the same by these words.
//
// Element types are f16 and bf16, rounded to the nearest, ties to even; sums are kept in f32.
// Instructions of a warp (`ldmatrix`, `mma`, `shuffle_xor`) want all its 32 lanes. From sm_80 copies to
// shared memory are asynchronous: a thread sees its own after `wait_copies`, and those of others after a
// `barrier` behind that.
#pragma once

#ifdef EMULATED
#include "emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

using u16 = unsigned short;
using u32 = unsigned int;
using i64 = long long;
using f16 = __half;
using bf16 = __nv_bfloat16;

// A kernel of `threads` a block, whose arguments are one struct, called `args`. Two blocks have room on a
// multiprocessor: one computes while the other waits. Before sm_80 the shared memory is for one.
#define KERNEL(name, Args, threads) \
    extern "C" __global__ void __launch_bounds__(threads, __CUDA_ARCH__ >= 800 ? 2 : 1) \
    name(const __grid_constant__ Args args)
#define DEVICE __device__ __forceinline__
// Shared memory of a block. What is in it at the start is anything.
#define SHARED(type, name, count) __shared__ __align__(128) type name[count]
#define UNROLL _Pragma("unroll")
// Tensor cores before sm_80 do not know bf16.
#define HAS_BF16 (__CUDA_ARCH__ >= 800)

DEVICE float to_float(f16 value) { return __half2float(value); }
DEVICE float to_float(bf16 value) { return __bfloat162float(value); }

template <class T> DEVICE T of_float(float value);
template <> DEVICE f16 of_float<f16>(float value) { return __float2half_rn(value); }
template <> DEVICE bf16 of_float<bf16>(float value) { return __float2bfloat16_rn(value); }

// Two numbers as neighbours in memory, the first one first.
template <class T> DEVICE u32 pack(float first, float second);
template <> DEVICE u32 pack<f16>(float first, float second) {
    const __half2 both = __floats2half2_rn(first, second);
    return *reinterpret_cast<const u32*>(&both);
}
template <> DEVICE u32 pack<bf16>(float first, float second) {
    const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
    return *reinterpret_cast<const u32*>(&both);
}

template <class T> DEVICE float2 unpack(u32 both);
template <> DEVICE float2 unpack<f16>(u32 both) {
    return __half22float2(*reinterpret_cast<const __half2*>(&both));
}
template <> DEVICE float2 unpack<bf16>(u32 both) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&both));
}

DEVICE float exp2_approx(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}
// Off by up to 2 units of the last place; 0 for divisors above 2^126.
DEVICE float quotient(float dividend, float divisor) { return __fdividef(dividend, divisor); }
DEVICE float float_of_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE float inverse_sqrt(float x) { return rsqrtf(x); }

DEVICE void barrier() { __syncthreads(); }
DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }

DEVICE u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// Four 8x8 matrices of 16-bit elements. Lane `l` names row `l % 8` of matrix `l / 8`, 16 bytes; it
// gets of each matrix the elements 2*(l%4) and 2*(l%4)+1 of row l/4.
DEVICE void ldmatrix(u32 (&matrices)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row)) : "memory");
}
// The same of the transposed matrices.
DEVICE void ldmatrix_transposed(u32 (&matrices)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(shared_address(row)) : "memory");
}

// sums[16][8] += a[16][16] * b[8][16] transposed. Lane `l` has of `sums` the columns 2*(l%4) and
// 2*(l%4)+1 of rows l/4 and l/4 + 8.
template <class T>
DEVICE void mma(float (&sums)[4], const u32 (&a)[4], u32 b_low, u32 b_high);
template <>
DEVICE void mma<f16>(float (&sums)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b_low));
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[2]), "r"(a[3]), "r"(b_high));
#endif
}
#if HAS_BF16
template <>
DEVICE void mma<bf16>(float (&sums)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
}
#endif

// Copies 16 bytes to shared memory, or zeros if not `valid`.
DEVICE void copy_async(void* shared, const void* global, bool valid) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
#else
    *static_cast<uint4*>(shared) = valid ? *static_cast<const uint4*>(global) : uint4{0, 0, 0, 0};
#endif
}
// Ends a group of copies.
DEVICE void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits for this thread's copies, but for those of its last `pending` groups.
template <int pending> DEVICE void wait_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" :: "n"(pending) : "memory");
#endif
}
#endif

constexpr int kWarp = 32;

DEVICE float infinity() { return float_of_bits(0x7f800000); }

DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DEVICE int lane_index() { return thread_index() % kWarp; }
DEVICE int warp_index() { return thread_index() / kWarp; }

// Of all lanes, in each of them.
DEVICE float sum_of_warp(float value) {
    UNROLL for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

// Where the 16 bytes `chunk` of `row` lie, in chunks, in a tile with rows of `kChunks`: so that the eight
// rows of an 8x8 matrix lie in different banks.
template <int kChunks> DEVICE int swizzled(int row, int chunk) {
    static_assert(kChunks % 4 == 0, "rows of whole quarters of 128 bytes");
    const int turn = kChunks % 8 == 0 ? row & 7 : row >> 1 & 3;
    return row * kChunks + (chunk ^ turn);
}
