// output[m, n] = activation(sum_k input[m, k] * weight[n, k] + bias[n]) + residual[m, n], of many rows,
// on sm_90a
//
// Answer key    engine::reference::linear
// Work split    a block computes tiles of 128 rows by `columns`, one after another, from its own number on
//               in steps of all blocks. A thread of the third warpgroup copies slices of 64 columns of the
//               input and of the weights, `stages` of them ahead and into the next tile; the first two
//               multiply, each for 64 rows of the tile
// Grid, block   as many as there are multiprocessors, or tiles, if fewer; 384 threads
// Memory        193 and 201 KiB of shared memory. Reads of a tile 2*K*(128 + columns) bytes: a
//               multiprocessor that computes 4096 FLOP a cycle reads 48 bytes in it by 256 columns and 53
//               by 192, from L2
// Numerics      products of 16-bit numbers, summed in f32 by the tensor cores; bias, activation and
//               residual in f32; rounded once
// Limits        in_stride and out_stride are multiples of 64; offsets of the output are 64-bit
// Source        PTX ISA 8.8, 9.7.15: asynchronous warpgroup level matrix instructions
#include "linear.cuh"
#include "sm90.cuh"

#if HAS_WGMMA
constexpr int kRows = 128;
constexpr int kDepth = 64;
constexpr int kMultipliers = 2;
constexpr int kThreads = (kMultipliers + 1) * kWarpgroup;
// Of a thread that copies, and of one that multiplies.
constexpr int kFewRegisters = 40, kManyRegisters = 232;
static_assert((kFewRegisters + kMultipliers * kManyRegisters) * kWarpgroup <= 65536, "of a block");

template <class T> struct Sm90LinearArgs {
    TensorMap input;      // [max_rows, in_stride], in boxes of 128 rows by 64
    TensorMap weight;     // [out_stride, in_stride], in boxes of `columns` rows by 64
    const u32* num_rows;
    const float* bias;    // [out_stride], zero behind the last
    const T* residual;    // [num_rows, out_stride], or null
    T* output;            // [num_rows, out_stride]; may be the residual
    int in_stride;
    int out_stride;
    Activation activation;
};

// Slices on their way from memory to who multiplies them, by turns through `stages` places.
template <class T, int columns, int stages> struct Slices {
    static constexpr int kBytes = (kRows + columns) * kDepth * int(sizeof(T));
    // Of shared memory, with what it takes to align it.
    static constexpr int kSharedBytes = 1024 + stages * (kBytes + 2 * int(sizeof(Phase)));
    T* slices;
    // Of each place: ends when a slice is there; ends when all warps have multiplied it.
    Phase *full, *empty;
    int turn = 0;

    DEVICE explicit Slices(unsigned char* shared) {
        shared = aligned_to_swizzle(shared);
        slices = reinterpret_cast<T*>(shared);
        full = reinterpret_cast<Phase*>(shared + stages * kBytes);
        empty = full + stages;
    }

    // By one thread, before all others.
    DEVICE void begin() {
        for (int place = 0; place < stages; ++place) {
            begin_phases(full + place, 1);
            begin_phases(empty + place, kMultipliers * kWarpgroup / kWarp);
        }
        publish_phases();
    }

    DEVICE T* rows() { return slices + turn % stages * (kBytes / int(sizeof(T))); }
    DEVICE T* weights() { return rows() + kRows * kDepth; }

    DEVICE void copy(const Sm90LinearArgs<T>& args, int column, int first_row, int first_column) {
        const int place = turn % stages;
        // What has never been full is empty.
        wait_phase(empty + place, turn / stages % 2 ^ 1);
        arrive_expecting(full + place, kBytes);
        copy_box(rows(), args.input, column, first_row, full + place);
        copy_box(weights(), args.weight, column, first_column, full + place);
        ++turn;
    }

    DEVICE void wait() { wait_phase(full + turn % stages, turn / stages % 2); }

    // The slice of a turn before may be overwritten: one lane says so for its warp.
    DEVICE void release(int turn) {
        if (lane_index() == 0) arrive(empty + turn % stages);
    }
};

template <class T, int columns, int stages> DEVICE void linear(const Sm90LinearArgs<T>& args) {
    DYNAMIC_SHARED(shared);
    Slices<T, columns, stages> slices(shared);
    if (thread_index() == 0) slices.begin();
    barrier();

    const int num_rows = static_cast<int>(*args.num_rows);
    const int tiles_across = (args.out_stride + columns - 1) / columns;
    const int num_tiles = (num_rows + kRows - 1) / kRows * tiles_across;
    const int first_tile = static_cast<int>(blockIdx.x), num_blocks = static_cast<int>(gridDim.x);
    const int group = thread_index() / kWarpgroup;
    if (group == kMultipliers) {
        leave_registers<kFewRegisters>();
        if (thread_index() > kMultipliers * kWarpgroup) return;
        for (int tile = first_tile; tile < num_tiles; tile += num_blocks)
            for (int column = 0; column < args.in_stride; column += kDepth)
                slices.copy(args, column, tile / tiles_across * kRows, tile % tiles_across * columns);
        return;
    }

    take_registers<kManyRegisters>();
    const int lane = lane_index();
    for (int tile = first_tile; tile < num_tiles; tile += num_blocks) {
        float sums[columns / 8][4];
        const int first_turn = slices.turn;
        for (int column = 0; column < args.in_stride; column += kDepth) {
            slices.wait();
            const T* rows = slices.rows() + group * 64 * kDepth;
            const T* weights = slices.weights();
            begin_products();
            UNROLL for (int k = 0; k < kDepth; k += 16)
                product<T, columns>(sums, descriptor(rows, k), descriptor(weights, k), column + k > 0);
            commit_products();
            // The tensor cores are never without a product while slices are there.
            wait_products<1>();
            if (slices.turn > first_turn) slices.release(slices.turn - 1);
            ++slices.turn;
        }
        wait_products<0>();
        slices.release(slices.turn - 1);

        const int first_row = tile / tiles_across * kRows + group * 64 + warp_index() % 4 * 16;
        const int first_column = tile % tiles_across * columns;
        with_activation(args.activation, [&](auto activate) {
            UNROLL for (int across = 0; across < columns / 8; ++across) {
                const int column = first_column + across * 8 + lane % 4 * 2;
                if (column >= args.out_stride) continue;
                const float bias[2] = {args.bias[column], args.bias[column + 1]};
                UNROLL for (int half = 0; half < 2; ++half) {
                    const int row = first_row + half * 8 + lane / 4;
                    if (row >= num_rows) continue;
                    store_pair(args.output, args.residual, i64(row) * args.out_stride + column,
                               activate(sums[across][2 * half] + bias[0]),
                               activate(sums[across][2 * half + 1] + bias[1]));
                }
            }
        });
    }
}

WIDE_KERNEL(sm90_linear_256_f16, Sm90LinearArgs<f16>, kThreads) { linear<f16, 256, 4>(args); }
WIDE_KERNEL(sm90_linear_256_bf16, Sm90LinearArgs<bf16>, kThreads) { linear<bf16, 256, 4>(args); }
WIDE_KERNEL(sm90_linear_192_f16, Sm90LinearArgs<f16>, kThreads) { linear<f16, 192, 5>(args); }
WIDE_KERNEL(sm90_linear_192_bf16, Sm90LinearArgs<bf16>, kThreads) { linear<bf16, 192, 5>(args); }
#endif
