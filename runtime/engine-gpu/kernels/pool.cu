// Hidden states [num_tokens, stride] to embeddings [batch_size, hidden_size].
//
// Answer key    engine::reference::pool
// Work split    one thread a column of a sequence, a loop over its tokens; a warp reads 32 neighbours
// Grid, block   (ceil(hidden_size / 128), max_batch_size), 128 threads
// Memory        no shared memory, no barrier; reads 2 bytes a token and column once: bound by bandwidth
// Numerics      summed in f32 in token order
// Limits        grid.y <= 65,535; offsets are 64-bit
// Source        Reimers & Gurevych 2019, Sentence-BERT, section 3
#include "device.cuh"

constexpr int kThreads = 128;

enum class Pooling : u32 { kMean, kCls, kLast, kMax };

template <class T> struct PoolArgs {
    const u32* batch_size;
    const u32* cu_seqlens;    // [batch_size + 1], in tokens; no sequence is empty
    const T* hidden_states;   // [num_tokens, stride]
    float* embeddings;        // [batch_size, hidden_size]
    i64 stride;
    int hidden_size;
    Pooling pooling;
};

template <class T> DEVICE void pool(const PoolArgs<T>& args) {
    const int column = static_cast<int>(blockIdx.x) * kThreads + thread_index();
    const u32 sequence = blockIdx.y;
    if (column >= args.hidden_size || sequence >= *args.batch_size) return;

    const i64 start = args.cu_seqlens[sequence];
    const i64 seq_len = args.cu_seqlens[sequence + 1] - start;
    const T* first = args.hidden_states + start * args.stride + column;
    float& embedding = args.embeddings[i64(sequence) * args.hidden_size + column];
    switch (args.pooling) {
        case Pooling::kCls:
            embedding = to_float(first[0]);
            return;
        case Pooling::kLast:
            embedding = to_float(first[(seq_len - 1) * args.stride]);
            return;
        case Pooling::kMean: {
            float sum = 0.0f;
            for (i64 token = 0; token < seq_len; ++token) sum += to_float(first[token * args.stride]);
            embedding = sum / static_cast<float>(seq_len);
            return;
        }
        case Pooling::kMax: {
            float largest = -infinity();
            for (i64 token = 0; token < seq_len; ++token) {
                const float value = to_float(first[token * args.stride]);
                // NaN stays, which a maximum would hide.
                if (!(value <= largest)) largest = value;
                if (isnan(value)) break;
            }
            embedding = largest;
            return;
        }
    }
}

KERNEL(pool_f16, PoolArgs<f16>, kThreads) { pool(args); }
KERNEL(pool_bf16, PoolArgs<bf16>, kThreads) { pool(args); }
