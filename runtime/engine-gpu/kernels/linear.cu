// output[m, n] = activation(sum_k input[m, k] * weight[n, k] + bias[n]) + residual[m, n]
//
// Answer key    engine::reference::linear
// Work split    a block computes a tile of the output; its warps divide the tile. The input passes
//               through shared memory in slices of `kDepth` columns, `kStages` of them at a time: while
//               one is multiplied, the next ones are on their way
// Grid, block   (ceil(out_stride / columns of the tile), ceil(max_rows / rows of the tile)); 256 threads
//               for the large tile, 128 for the others. Which tile is the host's choice.
// Memory        48, 48 and 40 KiB of shared memory; one barrier a slice. Reads 2*M*K bytes once for each
//               column of tiles, 2*N*K once for each row of tiles: bound by arithmetic from some hundred
//               rows, by reading the weights below
// Numerics      products of 16-bit numbers, summed in f32 by the tensor cores; bias, activation and
//               residual in f32; rounded once
// Limits        in_stride and out_stride are multiples of 64; grid.y <= 65,535; offsets are 64-bit
#include "linear.cuh"

template <class T> struct LinearArgs {
    const u32* num_rows;
    // Row m is input row input_rows[m]; row m itself, if null.
    const u32* input_rows;
    const T* input;       // [.., in_stride]
    const T* weight;      // [out_stride, in_stride], zero behind the last of each
    const float* bias;    // [out_stride], zero behind the last
    const T* residual;    // [num_rows, out_stride], or null
    T* output;            // [num_rows, out_stride]; may be the residual
    float* logits;        // [num_rows, out_features], in place of `output` if not null
    int in_stride;
    int out_stride;
    int out_features;
    Activation activation;
};

// kRows x kColumns of the output, by kWarpsDown x kWarpsAcross warps.
template <int rows, int columns, int depth, int warps_down, int warps_across, int stages>
struct Tile {
    static constexpr int kRows = rows, kColumns = columns, kDepth = depth, kStages = stages;
    static constexpr int kWarpsAcross = warps_across;
    static constexpr int kThreads = warps_down * warps_across * kWarp;
    // Of a warp, in steps of an mma: 16 rows, and twice 8 columns.
    static constexpr int kStepsDown = rows / warps_down / 16;
    static constexpr int kStepsAcross = columns / warps_across / 16;
    // Of 8 elements, in a row of a slice.
    static constexpr int kChunks = depth / 8;
    static constexpr int kSlice = (rows + columns) * depth;
    static_assert(kStepsDown > 0 && kStepsAcross > 0 && kThreads % kChunks == 0);
};

// The part of a slice that comes from one matrix: what each thread copies of it, and from where.
template <class T, class Shape, int rows> struct Copies {
    static constexpr int kRowsAtOnce = Shape::kThreads / Shape::kChunks;
    static constexpr int kCount = rows / kRowsAtOnce;
    static_assert(rows % kRowsAtOnce == 0);
    const T* sources[kCount];
    bool valid[kCount];

    // `locate(row)` is where the row begins, or null if there is none; then `other` is read, for nothing.
    template <class Locate> DEVICE void begin(const T* other, Locate locate) {
        const int chunk = thread_index() % Shape::kChunks;
        UNROLL for (int i = 0; i < kCount; ++i) {
            const T* source = locate(thread_index() / Shape::kChunks + i * kRowsAtOnce);
            valid[i] = source != nullptr;
            sources[i] = (source ? source : other) + chunk * 8;
        }
    }

    // Starts to copy columns `column..column + kDepth` to `shared`.
    DEVICE void start(T* shared, int column) const {
        const int chunk = thread_index() % Shape::kChunks;
        UNROLL for (int i = 0; i < kCount; ++i) {
            const int row = thread_index() / Shape::kChunks + i * kRowsAtOnce;
            T* target = shared + swizzled<Shape::kChunks>(row, chunk) * 8;
            copy_async(target, sources[i] + column, valid[i]);
        }
    }
};

template <class T, class Shape> DEVICE void linear(const LinearArgs<T>& args) {
    SHARED(T, slices, Shape::kStages * Shape::kSlice);
    const int num_rows = static_cast<int>(*args.num_rows);
    const int first_row = static_cast<int>(blockIdx.y) * Shape::kRows;
    const int first_column = static_cast<int>(blockIdx.x) * Shape::kColumns;
    if (first_row >= num_rows) return;

    Copies<T, Shape, Shape::kRows> input;
    input.begin(args.input, [&](int row) -> const T* {
        if (first_row + row >= num_rows) return nullptr;
        const i64 from = args.input_rows ? args.input_rows[first_row + row] : first_row + row;
        return args.input + from * args.in_stride;
    });
    Copies<T, Shape, Shape::kColumns> weight;
    weight.begin(args.weight, [&](int column) -> const T* {
        if (first_column + column >= args.out_stride) return nullptr;
        return args.weight + i64(first_column + column) * args.in_stride;
    });
    const int num_slices = args.in_stride / Shape::kDepth;
    // Groups of copies are counted, so one without copies is a group, too.
    const auto start = [&](int slice) {
        if (slice < num_slices) {
            T* target = slices + slice % Shape::kStages * Shape::kSlice;
            input.start(target, slice * Shape::kDepth);
            weight.start(target + Shape::kRows * Shape::kDepth, slice * Shape::kDepth);
        }
        commit_copies();
    };
    UNROLL for (int slice = 0; slice < Shape::kStages - 1; ++slice) start(slice);

    const int warp_row = warp_index() / Shape::kWarpsAcross * (Shape::kStepsDown * 16);
    const int warp_column = warp_index() % Shape::kWarpsAcross * (Shape::kStepsAcross * 16);
    const int lane = lane_index();
    float sums[Shape::kStepsDown][2 * Shape::kStepsAcross][4] = {};
    for (int slice = 0; slice < num_slices; ++slice) {
        wait_copies<Shape::kStages - 2>();
        // All copies of this slice are there, and nobody reads the one before any more.
        barrier();
        start(slice + Shape::kStages - 1);
        const T* rows = slices + slice % Shape::kStages * Shape::kSlice;
        const T* columns = rows + Shape::kRows * Shape::kDepth;
        UNROLL for (int chunk = 0; chunk < Shape::kChunks; chunk += 2) {
            u32 a[Shape::kStepsDown][4];
            UNROLL for (int down = 0; down < Shape::kStepsDown; ++down) {
                const int row = warp_row + down * 16 + lane % 16;
                ldmatrix(a[down], rows + swizzled<Shape::kChunks>(row, chunk + lane / 16) * 8);
            }
            UNROLL for (int across = 0; across < Shape::kStepsAcross; ++across) {
                u32 b[4];
                const int column = warp_column + across * 16 + lane / 16 * 8 + lane % 8;
                ldmatrix(b, columns + swizzled<Shape::kChunks>(column, chunk + lane / 8 % 2) * 8);
                UNROLL for (int down = 0; down < Shape::kStepsDown; ++down) {
                    mma<T>(sums[down][2 * across], a[down], b[0], b[1]);
                    mma<T>(sums[down][2 * across + 1], a[down], b[2], b[3]);
                }
            }
        }
    }

    // Of each 16 x 8 sums, a lane has two neighbours in two rows.
    const auto finish = [&](auto activate) {
        UNROLL for (int down = 0; down < Shape::kStepsDown; ++down)
            UNROLL for (int across = 0; across < 2 * Shape::kStepsAcross; ++across)
                UNROLL for (int half = 0; half < 2; ++half) {
            const int row = first_row + warp_row + down * 16 + half * 8 + lane / 4;
            const int column = first_column + warp_column + across * 8 + lane % 4 * 2;
            if (row >= num_rows || column >= args.out_stride) continue;
            const float first = activate(sums[down][across][2 * half] + args.bias[column]);
            const float second = activate(sums[down][across][2 * half + 1] + args.bias[column + 1]);
            if (args.logits) {
                float* logits = args.logits + i64(row) * args.out_features;
                if (column < args.out_features) logits[column] = first;
                if (column + 1 < args.out_features) logits[column + 1] = second;
                continue;
            }
            const i64 place = i64(row) * args.out_stride + column;
            store_pair(args.output, args.residual, place, first, second);
        }
    };
    with_activation(args.activation, finish);
}

// Many rows; a few; those of one short sequence.
using Large = Tile<128, 128, 32, 2, 4, 3>;
using Medium = Tile<64, 64, 64, 2, 2, 3>;
using Small = Tile<16, 64, 64, 1, 4, 4>;

KERNEL(linear_large_f16, LinearArgs<f16>, Large::kThreads) { linear<f16, Large>(args); }
KERNEL(linear_medium_f16, LinearArgs<f16>, Medium::kThreads) { linear<f16, Medium>(args); }
KERNEL(linear_small_f16, LinearArgs<f16>, Small::kThreads) { linear<f16, Small>(args); }
#if HAS_BF16
KERNEL(linear_large_bf16, LinearArgs<bf16>, Large::kThreads) { linear<bf16, Large>(args); }
KERNEL(linear_medium_bf16, LinearArgs<bf16>, Medium::kThreads) { linear<bf16, Medium>(args); }
KERNEL(linear_small_bf16, LinearArgs<bf16>, Small::kThreads) { linear<bf16, Small>(args); }
#endif
