// Token ids [num_tokens] to hidden states [num_tokens, stride]: the rows of their words, positions and
// token types, added and normalized.
//
// Answer key    engine::reference::embed, layer_norm
// Work split    one warp a token
// Grid, block   ceil(max_tokens / 4), 128 threads
// Memory        no shared memory, no barrier; reads 6 bytes and writes 2 a column: bound by bandwidth,
//               less what the caches know of frequent words
// Numerics      summed and normalized in f32, from differences to the mean; rounded once
// Limits        stride a multiple of 8, up to 2,048; offsets are 64-bit
#include "row.cuh"

constexpr int kThreads = 128;

template <class T> struct EmbeddingsArgs {
    const u32* num_tokens;
    const u32* input_ids;       // [num_tokens]
    const u32* position_ids;    // [num_tokens]
    const u32* token_type_ids;  // [num_tokens]; not read without a table of types
    const T* words;             // [vocab_size, stride]
    const T* positions;         // [max_position_embeddings, stride]
    const T* token_types;       // [type_vocab_size, stride], or null
    T* hidden_states;           // [num_tokens, stride]
    Norm norm;
};

template <class T> DEVICE void embeddings(const EmbeddingsArgs<T>& args) {
    const i64 token = i64(blockIdx.x) * (kThreads / kWarp) + warp_index();
    if (token >= *args.num_tokens) return;

    const i64 stride = args.norm.stride;
    RowValues row = {};
    add_row(row, stride, args.words + args.input_ids[token] * stride);
    add_row(row, stride, args.positions + args.position_ids[token] * stride);
    if (args.token_types)
        add_row(row, stride, args.token_types + args.token_type_ids[token] * stride);
    normalize_row(row, args.norm, args.hidden_states + token * stride);
}

KERNEL(embeddings_f16, EmbeddingsArgs<f16>, kThreads) { embeddings(args); }
KERNEL(embeddings_bf16, EmbeddingsArgs<bf16>, kThreads) { embeddings(args); }
