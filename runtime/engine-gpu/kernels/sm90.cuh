// The words of sm_90a, beside those of device.cuh: boxes that are copied by themselves, barriers with
// phases, and products of a warpgroup.
//
// A `Phase` lies in shared memory. It ends when all arrivals and all bytes that it expects are there, and
// the next one begins; who waits says whether the phase is an even one (0) or an odd one (1).
// A warpgroup is four warps. Its products are asynchronous: of what they read and write nothing may be
// touched before `wait_products`. Matrices in shared memory have rows of 64 16-bit elements, and begin at
// multiples of 1024 bytes: in each eight rows, the 16 bytes `chunk` of row r lie at `chunk ^ r`.
#pragma once
#include "device.cuh"

constexpr int kWarpgroup = 4 * kWarp;

#ifdef EMULATED
#include "sm90.h"
#else
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define HAS_WGMMA 1
#else
#define HAS_WGMMA 0
#endif

using u64 = unsigned long long;
using Phase = u64;

// A matrix in the memory of the device, and which boxes of it are copied: made by the driver.
struct alignas(128) TensorMap { u64 words[16]; };

#if HAS_WGMMA
// A kernel that has a multiprocessor to itself, and `shared`: as many bytes as its launch says.
#define WIDE_KERNEL(name, Args, threads) \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Args args)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

DEVICE void begin_phases(Phase* phase, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                 :: "r"(shared_address(phase)), "r"(arrivals) : "memory");
}
// Shows what has begun to those who copy.
DEVICE void publish_phases() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
DEVICE void arrive(Phase* phase) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(phase)) : "memory");
}
// Arrives, and has the phase expect `bytes` more.
DEVICE void arrive_expecting(Phase* phase, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(shared_address(phase)), "r"(bytes) : "memory");
}
// Returns when the phase of this parity has ended; at once, if the other one has not.
DEVICE void wait_phase(Phase* phase, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred ended;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
                 "@!ended bra again;\n"
                 "}" :: "r"(shared_address(phase)), "r"(parity) : "memory");
}

// Starts to copy the box at `column` and `row` of a matrix. What lies outside of the matrix is zeros, and
// counts as bytes all the same.
DEVICE void copy_box(void* shared, const TensorMap& matrix, int column, int row, Phase* phase) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];"
                 :: "r"(shared_address(shared)), "l"(&matrix), "r"(column), "r"(row),
                    "r"(shared_address(phase)) : "memory");
}

// Of the registers of the block, this warpgroup has so many a thread from now on.
template <int registers> DEVICE void leave_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(registers));
}
template <int registers> DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(registers));
}

// Before the first of some products: the sums are theirs now.
DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Ends a group of products.
DEVICE void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits for all products but those of the last `pending` groups.
template <int pending> DEVICE void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(pending) : "memory");
}

#define SUMS_4(i) "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 1), SUMS_4(i + 2), SUMS_4(i + 3)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 4)
#define REGISTERS_96 \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
    "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45," \
    "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67," \
    "%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89," \
    "%90,%91,%92,%93,%94,%95"
#define REGISTERS_128 REGISTERS_96 \
    ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113," \
    "%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define PRODUCT_192(type) \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %98, 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n192k16.f32." type "." type \
                 " {" REGISTERS_96 "}, %96, %97, adds, 1, 1, 0, 0;\n}" \
                 : SUMS_32(0), SUMS_32(8), SUMS_32(16) : "l"(a), "l"(b), "r"(int(adds)))
#define PRODUCT_256(type) \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %130, 0;\n" \
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type \
                 " {" REGISTERS_128 "}, %128, %129, adds, 1, 1, 0, 0;\n}" \
                 : SUMS_32(0), SUMS_32(8), SUMS_32(16), SUMS_32(24) \
                 : "l"(a), "l"(b), "r"(int(adds)))

// Starts sums[64][N] = a[64][16] * b[N][16] transposed, which `adds` to what the sums are, for all four
// warps. Warp w has rows 16w and behind; in these, of columns 8i and behind lane l has what `sums[i]` is
// of `mma`. `a` and `b` are places in shared memory, from `descriptor`.
template <class T, int N> DEVICE void product(float (&sums)[N / 8][4], u64 a, u64 b, bool adds);
template <>
DEVICE void product<f16, 192>(float (&sums)[24][4], u64 a, u64 b, bool adds) { PRODUCT_192("f16"); }
template <>
DEVICE void product<f16, 256>(float (&sums)[32][4], u64 a, u64 b, bool adds) { PRODUCT_256("f16"); }
template <>
DEVICE void product<bf16, 192>(float (&sums)[24][4], u64 a, u64 b, bool adds) { PRODUCT_192("bf16"); }
template <>
DEVICE void product<bf16, 256>(float (&sums)[32][4], u64 a, u64 b, bool adds) { PRODUCT_256("bf16"); }
#endif
#endif

#if HAS_WGMMA
// Of a matrix in shared memory, from a column that is a multiple of 16.
DEVICE u64 descriptor(const void* matrix, int column) {
    // In units of 16 bytes, of which an element takes an eighth: where it begins; how far it is to the
    // next eight rows. The order of a row's chunks is the first of the swizzled ones.
    constexpr u64 kEightRows = 1024 >> 4, kSwizzled128 = 1;
    const u64 start = (shared_address(matrix) >> 4) + column / 8;
    return (start & 0x3fff) | kEightRows << 32 | kSwizzled128 << 62;
}

// The first multiple of 1024 bytes in shared memory that has so many more.
DEVICE unsigned char* aligned_to_swizzle(unsigned char* shared) {
    return shared + (1024 - shared_address(shared) % 1024) % 1024;
}
#endif
