// The words of kernels/device.cuh, as one CPU thread means them.
//
// A fiber for each thread of a block, a block at a time. What is done by a warp waits until all 32
// lanes are there, for the same. Warps run in random order, each for a random stretch and so far ahead
// of the others: a barrier that is missing shows. Shared memory is NaN at the start. An asynchronous
// copy is made at once, or as late as the kernel allows, by chance.
//
// Not known here: how fast anything is, but for conflicts of banks; what a warp does after its lanes
// have parted. What sm_90a knows is in sm90.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

using u16 = std::uint16_t;
using u32 = std::uint32_t;
using i64 = std::int64_t;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };

#define DEVICE inline
#define UNROLL
#define HAS_BF16 1
#define SHARED(type, name, count) type* name = emulator::shared<type>(count)
// A kernel of this file, and how it is found by its name.
#define KERNEL(name, Args, threads) \
    static void name(const Args& args); \
    static const emulator::Kernel registered_##name{ \
        VARIANT #name, threads, sizeof(Args), \
        [](const void* args) { name(*static_cast<const Args*>(args)); }}; \
    static void name(const Args& args)

#define threadIdx (emulator::thread_place())
#define blockIdx (emulator::block_place())
#define gridDim (emulator::grid_size())

// Before the name of each kernel of a translation unit: tests compile some that are broken on purpose.
#ifndef VARIANT
#define VARIANT ""
#endif

namespace emulator {

constexpr int kLanes = 32;

struct Place { u32 x, y, z; };

struct Kernel {
    const char* name;
    int num_threads;
    std::size_t args_size;
    void (*run)(const void* args);

    Kernel(const char* name, int num_threads, std::size_t args_size, void (*run)(const void*));
};

Place thread_place();
Place block_place();
Place grid_size();
void* shared_bytes(std::size_t size);

template <class T> T* shared(std::size_t count) {
    return static_cast<T*>(shared_bytes(count * sizeof(T)));
}

// What a warp does together. `inputs[l]` and `outputs[l]` are those of lane l.
using Together = void (*)(const void* const* inputs, void* const* outputs);
// Returns when all lanes of the warp are there and `together` has been called, once.
void join_warp(Together together, const void* input, void* output);
void join_block();
void copy(void* shared, const void* global, bool valid);
void commit_copies();
void wait_copies(int pending);
// Counts how often the banks of shared memory are asked for the eight rows of each of four matrices.
void count_conflicts(const void* const* rows);

float f16_to_float(u16 bits);
u16 f16_of_float(float value);

}  // namespace emulator

inline float float_of_bits(u32 bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline u32 bits_of_float(float value) {
    u32 bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float to_float(f16 value) { return emulator::f16_to_float(value.bits); }
inline float to_float(bf16 value) { return float_of_bits(u32(value.bits) << 16); }

template <class T> T of_float(float value);
template <> inline f16 of_float<f16>(float value) { return {emulator::f16_of_float(value)}; }
template <> inline bf16 of_float<bf16>(float value) {
    if (std::isnan(value)) return {0x7fff};
    const u32 bits = bits_of_float(value);
    return {u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <class T> u32 pack(float first, float second) {
    return of_float<T>(first).bits | u32(of_float<T>(second).bits) << 16;
}
template <class T> float2 unpack(u32 both) {
    return {to_float(T{u16(both)}), to_float(T{u16(both >> 16)})};
}

inline float exp2_approx(float x) { return std::exp2(x); }
inline float quotient(float dividend, float divisor) { return dividend / divisor; }
inline float inverse_sqrt(float x) { return 1.0f / std::sqrt(x); }
using std::isnan;

inline void barrier() { emulator::join_block(); }

inline float shuffle_xor(float value, int mask) {
    struct Input { float value; int mask; } input{value, mask};
    float output;
    emulator::join_warp([](const void* const* inputs, void* const* outputs) {
        for (int lane = 0; lane < emulator::kLanes; ++lane) {
            const int other = lane ^ static_cast<const Input*>(inputs[lane])->mask;
            *static_cast<float*>(outputs[lane]) = static_cast<const Input*>(inputs[other])->value;
        }
    }, &input, &output);
    return output;
}

namespace emulator {

template <bool is_transposed> void load_matrices(u32 (&matrices)[4], const void* row) {
    join_warp([](const void* const* rows, void* const* outputs) {
        count_conflicts(rows);
        for (int lane = 0; lane < kLanes; ++lane)
            for (int matrix = 0; matrix < 4; ++matrix) {
                u16 pair[2];
                for (int i = 0; i < 2; ++i) {
                    const int across = lane % 4 * 2 + i, down = lane / 4;
                    const auto* row = static_cast<const u16*>(
                        rows[matrix * 8 + (is_transposed ? across : down)]);
                    pair[i] = row[is_transposed ? down : across];
                }
                static_cast<u32*>(outputs[lane])[matrix] = pair[0] | u32(pair[1]) << 16;
            }
    }, row, matrices);
}

}  // namespace emulator

inline void ldmatrix(u32 (&matrices)[4], const void* row) {
    emulator::load_matrices<false>(matrices, row);
}
inline void ldmatrix_transposed(u32 (&matrices)[4], const void* row) {
    emulator::load_matrices<true>(matrices, row);
}

template <class T> void mma(float (&sums)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
    struct Input { u32 a[4], b[2]; float sums[4]; };
    Input input{{a[0], a[1], a[2], a[3]}, {b_low, b_high}, {sums[0], sums[1], sums[2], sums[3]}};
    emulator::join_warp([](const void* const* inputs, void* const* outputs) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < emulator::kLanes; ++lane) {
            const auto& input = *static_cast<const Input*>(inputs[lane]);
            const int row = lane / 4, column = lane % 4 * 2;
            for (int part = 0; part < 4; ++part) {
                const float2 pair = unpack<T>(input.a[part]);
                a[row + part % 2 * 8][column + part / 2 * 8] = pair.x;
                a[row + part % 2 * 8][column + part / 2 * 8 + 1] = pair.y;
            }
            for (int part = 0; part < 2; ++part) {
                const float2 pair = unpack<T>(input.b[part]);
                b[column + part * 8][row] = pair.x;
                b[column + part * 8 + 1][row] = pair.y;
            }
        }
        float products[16][8] = {};
        for (int row = 0; row < 16; ++row)
            for (int k = 0; k < 16; ++k)
                for (int column = 0; column < 8; ++column)
                    products[row][column] += a[row][k] * b[k][column];
        for (int lane = 0; lane < emulator::kLanes; ++lane)
            for (int i = 0; i < 4; ++i)
                static_cast<float*>(outputs[lane])[i] =
                    static_cast<const Input*>(inputs[lane])->sums[i] +
                    products[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }, &input, sums);
}

inline void copy_async(void* shared, const void* global, bool valid) {
    emulator::copy(shared, global, valid);
}
inline void commit_copies() { emulator::commit_copies(); }
template <int pending> void wait_copies() { emulator::wait_copies(pending); }
