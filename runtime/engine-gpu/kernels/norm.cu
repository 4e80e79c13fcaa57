// LayerNorm of hidden states [num_tokens, stride], row by row; in place, if input is output.
//
// Answer key    engine::reference::layer_norm
// Work split    one warp a token
// Grid, block   ceil(max_tokens / 4), 128 threads
// Memory        no shared memory, no barrier; reads and writes 2 bytes a column: bound by bandwidth
// Numerics      in f32, from differences to the mean; rounded once
// Limits        stride a multiple of 8, up to 2,048; offsets are 64-bit
// Source        Ba, Kiros & Hinton 2016, Layer Normalization, section 3
#include "row.cuh"

constexpr int kThreads = 128;

template <class T> struct NormArgs {
    const u32* num_tokens;
    const T* input;  // [num_tokens, stride]
    T* output;       // [num_tokens, stride]
    Norm norm;
};

template <class T> DEVICE void layer_norm(const NormArgs<T>& args) {
    const i64 token = i64(blockIdx.x) * (kThreads / kWarp) + warp_index();
    if (token >= *args.num_tokens) return;

    const i64 start = token * args.norm.stride;
    RowValues row = {};
    add_row(row, args.norm.stride, args.input + start);
    normalize_row(row, args.norm, args.output + start);
}

KERNEL(norm_f16, NormArgs<f16>, kThreads) { layer_norm(args); }
KERNEL(norm_bf16, NormArgs<bf16>, kThreads) { layer_norm(args); }
