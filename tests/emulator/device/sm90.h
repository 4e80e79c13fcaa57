// The words of kernels/sm90.cuh, as one CPU thread means them.
//
// A box arrives at any time; a warpgroup makes its products at once or as late as the kernel allows, by chance. Matrices are
// read and written where the hardware does, by the bits of addresses in shared memory.
//
// Not known here: registers that are left and taken; whether what a thread has written to shared memory
// is there for products; clusters; other layouts than the one of `descriptor`.
#pragma once
#include "emulator.h"

using u64 = std::uint64_t;
using Phase = u64;

#define HAS_WGMMA 1
#define WIDE_KERNEL KERNEL
#define DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared()

// As `Emulated::tensor_map` makes it.
struct alignas(128) TensorMap {
    u64 address, num_rows, num_columns, row_bytes, box_rows, unused[11];
};

namespace emulator {

unsigned char* dynamic_shared();
u32 shared_address(const void* shared);

void begin_phases(Phase* phase, int arrivals);
void publish_phases();
void arrive(Phase* phase, u32 expected_bytes);
void wait_phase(const Phase* phase, u32 parity);
void copy_box(void* shared, const TensorMap& matrix, int column, int row, Phase* phase);

// Of a warpgroup: sums[64][num_columns] = a[64][16] * b[num_columns][16] transposed.
struct Product {
    u64 a, b;
    bool adds;
    int num_columns;
    float (*value)(u16 bits);
    // Of the thread that asks for it.
    float* sums;
};

void begin_products();
void start_product(const Product& product);
void commit_products();
void wait_products(int pending);

}  // namespace emulator

using emulator::begin_phases;
using emulator::begin_products;
using emulator::commit_products;
using emulator::copy_box;
using emulator::publish_phases;
using emulator::shared_address;
using emulator::wait_phase;

inline void arrive(Phase* phase) { emulator::arrive(phase, 0); }
inline void arrive_expecting(Phase* phase, u32 bytes) { emulator::arrive(phase, bytes); }

template <int registers> void leave_registers() {}
template <int registers> void take_registers() {}

template <int pending> void wait_products() { emulator::wait_products(pending); }

template <class T, int N> void product(float (&sums)[N / 8][4], u64 a, u64 b, bool adds) {
    const auto value = [](u16 bits) { return to_float(T{bits}); };
    emulator::start_product({a, b, adds, N, value, sums[0]});
}
