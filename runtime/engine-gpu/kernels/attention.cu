// Softmax attention of each head over each sequence: softmax(scale * Q K^T + bias) V.
//
// Answer key    engine::reference::attention
// Work split    a block computes 64 queries of one head of one sequence, 16 a warp, over all keys of the
//               sequence, a tile of them at a time. The host lists the blocks, so that none is empty
// Grid, block   (max_blocks, num_heads), 128 threads
// Memory        20 to 48 KiB of shared memory, one barrier a tile of keys: the next tile is on its way
//               while one is used. Reads 6 and writes 2 bytes a token and column, keys and values once
//               for each 64 queries: bound by bandwidth for short sequences, by arithmetic for long ones
// Numerics      scores, maximum and sum in f32, weights of the values rounded to T; one pass, rescaled
//               when the maximum grows
// Limits        head_dim 32, 64, 96 or 128, padded with zeros; grid.y = num_heads <= 65,535
// Source        Dao 2023, FlashAttention-2, section 3.1
#include "device.cuh"

constexpr int kThreads = 128;
constexpr int kQueries = 64;

struct AttentionBlock {
    u32 sequence;
    u32 first_query;
};

template <class T> struct AttentionArgs {
    const u32* num_blocks;
    const AttentionBlock* blocks;   // [num_blocks]
    const u32* cu_seqlens;          // [batch_size + 1], in tokens
    const T* query_key_value;       // [num_tokens, in_stride]: all heads' queries, then keys, then values
    // [num_heads, 2 * max_seqlen - 1], by key - query + max_seqlen - 1, or null
    const float* position_bias;
    T* context;                     // [num_tokens, out_stride]
    int max_seqlen;
    int in_stride;
    int out_stride;
    // 1 / sqrt(head_dim before padding)
    float scale;
};

constexpr float kLog2E = 1.442695041f;

// Copies a tile of `rows` by head_dim to shared memory; rows that are not there are zeros.
template <class T, int rows, int chunks>
DEVICE void copy_tile(T* shared, const T* source, i64 stride, int num_rows) {
    for (int i = thread_index(); i < rows * chunks; i += kThreads) {
        const int row = i / chunks, chunk = i % chunks;
        const bool valid = row < num_rows;
        copy_async(shared + swizzled<chunks>(row, chunk) * 8,
                   source + (valid ? row * stride + chunk * 8 : 0), valid);
    }
}

template <class T, int head_dim> DEVICE void attention(const AttentionArgs<T>& args) {
    constexpr int kChunks = head_dim / 8;
    // As many keys as fit with their values, twice.
    constexpr int kKeys = head_dim > 64 ? 32 : 64;
    constexpr int kTile = kKeys * head_dim;
    SHARED(T, queries, kQueries * head_dim);
    SHARED(T, keys_values, 2 * 2 * kTile);
    if (blockIdx.x >= *args.num_blocks) return;

    const AttentionBlock block = args.blocks[blockIdx.x];
    const int head = static_cast<int>(blockIdx.y);
    const i64 start = args.cu_seqlens[block.sequence];
    const int seq_len = static_cast<int>(args.cu_seqlens[block.sequence + 1] - start);
    const int first_query = static_cast<int>(block.first_query);
    const i64 stride = args.in_stride;
    const int part = static_cast<int>(gridDim.y) * head_dim;
    const T* first = args.query_key_value + start * stride + head * head_dim;
    const auto copy_keys = [&](int first_key) {
        T* keys = keys_values + first_key / kKeys % 2 * (2 * kTile);
        const T* source = first + first_key * stride + part;
        copy_tile<T, kKeys, kChunks>(keys, source, stride, seq_len - first_key);
        copy_tile<T, kKeys, kChunks>(keys + kTile, source + part, stride, seq_len - first_key);
    };
    copy_tile<T, kQueries, kChunks>(queries, first + first_query * stride, stride,
                                    seq_len - first_query);
    copy_keys(0);
    commit_copies();

    const int lane = lane_index();
    const int warp_row = warp_index() * 16;
    u32 query[head_dim / 16][4];
    float context[kChunks][4] = {};
    // Of this lane's two rows: the largest score so far, and this lane's part of the sum.
    float largest[2] = {-infinity(), -infinity()}, sum[2] = {0.0f, 0.0f};
    for (int first_key = 0; first_key < seq_len; first_key += kKeys) {
        wait_copies<0>();
        // This tile is there, and nobody reads the one before any more.
        barrier();
        if (first_key == 0)
            UNROLL for (int step = 0; step < head_dim / 16; ++step)
                ldmatrix(query[step], queries + swizzled<kChunks>(warp_row + lane % 16,
                                                                  step * 2 + lane / 16) * 8);
        if (first_key + kKeys < seq_len) copy_keys(first_key + kKeys);
        commit_copies();
        const T* keys = keys_values + first_key / kKeys % 2 * (2 * kTile);
        const T* values = keys + kTile;

        float scores[kKeys / 8][4] = {};
        UNROLL for (int step = 0; step < head_dim / 16; ++step)
            UNROLL for (int group = 0; group < kKeys / 8; group += 2) {
                u32 key[4];
                ldmatrix(key, keys + swizzled<kChunks>(group * 8 + lane / 16 * 8 + lane % 8,
                                                       step * 2 + lane / 8 % 2) * 8);
                mma<T>(scores[group], query[step], key[0], key[1]);
                mma<T>(scores[group + 1], query[step], key[2], key[3]);
            }

        // In units of log2; -infinity behind the last key.
        float larger[2] = {largest[0], largest[1]};
        UNROLL for (int group = 0; group < kKeys / 8; ++group)
            UNROLL for (int i = 0; i < 4; ++i) {
                const int key = first_key + group * 8 + lane % 4 * 2 + i % 2;
                float score = scores[group][i] * (args.scale * kLog2E);
                if (args.position_bias && key < seq_len) {
                    // Of queries behind the last one nobody reads anything: any bias will do.
                    const int row = first_query + warp_row + i / 2 * 8 + lane / 4;
                    const int distance = row < seq_len ? key - row : 0;
                    const float* bias = args.position_bias + head * (2 * args.max_seqlen - 1);
                    score += bias[distance + args.max_seqlen - 1] * kLog2E;
                }
                scores[group][i] = key < seq_len ? score : -infinity();
                larger[i / 2] = fmaxf(larger[i / 2], scores[group][i]);
            }
        // Four lanes share a row.
        UNROLL for (int row = 0; row < 2; ++row) {
            larger[row] = fmaxf(larger[row], shuffle_xor(larger[row], 1));
            larger[row] = fmaxf(larger[row], shuffle_xor(larger[row], 2));
            const float shrink = exp2_approx(largest[row] - larger[row]);
            largest[row] = larger[row];
            sum[row] *= shrink;
            UNROLL for (int chunk = 0; chunk < kChunks; ++chunk) {
                context[chunk][2 * row] *= shrink;
                context[chunk][2 * row + 1] *= shrink;
            }
        }
        u32 weights[kKeys / 8][2];
        UNROLL for (int group = 0; group < kKeys / 8; ++group)
            UNROLL for (int row = 0; row < 2; ++row) {
                const float one = exp2_approx(scores[group][2 * row] - largest[row]);
                const float other = exp2_approx(scores[group][2 * row + 1] - largest[row]);
                sum[row] += one + other;
                weights[group][row] = pack<T>(one, other);
            }

        UNROLL for (int step = 0; step < kKeys / 16; ++step) {
            const u32 weight[4] = {weights[2 * step][0], weights[2 * step][1],
                                   weights[2 * step + 1][0], weights[2 * step + 1][1]};
            UNROLL for (int chunk = 0; chunk < kChunks; chunk += 2) {
                u32 value[4];
                ldmatrix_transposed(value,
                                    values + swizzled<kChunks>(step * 16 + lane % 16,
                                                               chunk + lane / 16) * 8);
                mma<T>(context[chunk], weight, value[0], value[1]);
                mma<T>(context[chunk + 1], weight, value[2], value[3]);
            }
        }
    }

    UNROLL for (int row = 0; row < 2; ++row) {
        float total = sum[row] + shuffle_xor(sum[row], 1);
        total += shuffle_xor(total, 2);
        const int query_row = first_query + warp_row + row * 8 + lane / 4;
        if (query_row >= seq_len) continue;
        T* target = args.context + (start + query_row) * args.out_stride + head * head_dim;
        UNROLL for (int chunk = 0; chunk < kChunks; ++chunk)
            *reinterpret_cast<u32*>(target + chunk * 8 + lane % 4 * 2) =
                pack<T>(context[chunk][2 * row] / total, context[chunk][2 * row + 1] / total);
    }
}

KERNEL(attention_32_f16, AttentionArgs<f16>, kThreads) { attention<f16, 32>(args); }
KERNEL(attention_64_f16, AttentionArgs<f16>, kThreads) { attention<f16, 64>(args); }
KERNEL(attention_96_f16, AttentionArgs<f16>, kThreads) { attention<f16, 96>(args); }
KERNEL(attention_128_f16, AttentionArgs<f16>, kThreads) { attention<f16, 128>(args); }
#if HAS_BF16
KERNEL(attention_32_bf16, AttentionArgs<bf16>, kThreads) { attention<bf16, 32>(args); }
KERNEL(attention_64_bf16, AttentionArgs<bf16>, kThreads) { attention<bf16, 64>(args); }
KERNEL(attention_96_bf16, AttentionArgs<bf16>, kThreads) { attention<bf16, 96>(args); }
KERNEL(attention_128_bf16, AttentionArgs<bf16>, kThreads) { attention<bf16, 128>(args); }
#endif
