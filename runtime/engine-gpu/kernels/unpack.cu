// Packed weights, as a bundle holds them, to rows of T.
//
// Answer key    engine::reference::unpack
// Work split    one thread eight neighbours of a row
// Grid, block   ceil(num_rows * stride / 8 / 256), 256 threads
// Memory        no shared memory, no barrier; once for each tensor of a model, so never what counts
// Numerics      8-bit steps times the row's scale in f32, rounded once to T; infinity where T has no room
// Limits        stride is a multiple of 8; offsets are 64-bit
#include "device.cuh"

constexpr int kThreads = 256;
// Numbers of a thread: 16 bytes of the output.
constexpr int kNumbers = 8;
// Output channels of a panel.
constexpr int kPanel = 32;

enum class Packed : u32 { kF32, kBf16, kInt8 };

// A matrix is in panels of 32 rows: [panels, words, 32], where a word of 32 bits holds 1, 2 or 4
// neighbours of a row. A table is in rows.
enum class Order : u32 { kPanels, kRows };

template <class T> struct UnpackArgs {
    const u32* packed;
    const float* scales;  // [num_rows] of 8-bit rows, worth of a step
    T* output;            // [num_rows, stride]
    i64 num_rows;
    i64 stride;
    Packed dtype;
    Order order;
};

// Element `place` of a word.
DEVICE float element(Packed dtype, u32 word, int place, float scale) {
    switch (dtype) {
        case Packed::kF32: return float_of_bits(word);
        case Packed::kBf16: return float_of_bits(word >> 16 * place << 16);
        default: return static_cast<signed char>(word >> 8 * place) * scale;
    }
}

template <class T> DEVICE void unpack_weights(const UnpackArgs<T>& args) {
    const i64 index = (i64(blockIdx.x) * kThreads + thread_index()) * kNumbers;
    if (index >= args.num_rows * args.stride) return;

    const i64 row = index / args.stride, first_column = index % args.stride;
    const int per_word = args.dtype == Packed::kF32 ? 1 : args.dtype == Packed::kBf16 ? 2 : 4;
    const i64 words = args.stride / per_word;
    const float scale = args.dtype == Packed::kInt8 ? args.scales[row] : 1.0f;
    const auto number = [&](int i) {
        const int column = static_cast<int>(first_column) + i;
        const i64 word = column / per_word;
        const u32 bits = args.order == Order::kRows
            ? args.packed[row * words + word]
            : args.packed[(row / kPanel * words + word) * kPanel + row % kPanel];
        return element(args.dtype, bits, column % per_word, scale);
    };
    u32 pairs[kNumbers / 2];
    UNROLL for (int i = 0; i < kNumbers / 2; ++i) pairs[i] = pack<T>(number(2 * i), number(2 * i + 1));
    *reinterpret_cast<uint4*>(args.output + index) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}

KERNEL(unpack_f16, UnpackArgs<f16>, kThreads) { unpack_weights(args); }
KERNEL(unpack_bf16, UnpackArgs<bf16>, kThreads) { unpack_weights(args); }
