// A row of hidden states in the registers of a warp, and its normalization.
#pragma once
#include "device.cuh"

// A lane holds 8 neighbouring columns, and those 256, 512, ... further on: rows up to 2,048 wide.
constexpr int kColumnsPerLane = 8;
constexpr int kChunkColumns = kWarp * kColumnsPerLane;
constexpr int kMaxChunks = 8;

struct Norm {
    const float* weight;  // [stride], zero behind `hidden_size`
    const float* bias;    // [stride], zero behind `hidden_size`
    // Elements from one row to the next, a multiple of 8. Columns behind `hidden_size` are zero.
    i64 stride;
    int hidden_size;
    float epsilon;
};

using RowValues = float[kMaxChunks][kColumnsPerLane];

// Calls `visit(chunk, column)` for the columns of this lane that are within the row.
template <class Visit> DEVICE void for_each_chunk(i64 stride, Visit visit) {
    UNROLL for (int chunk = 0; chunk < kMaxChunks; ++chunk) {
        const int column = chunk * kChunkColumns + lane_index() * kColumnsPerLane;
        if (column < stride) visit(chunk, column);
    }
}

// row += source, 8 columns at a time.
template <class T> DEVICE void add_row(RowValues& row, i64 stride, const T* source) {
    for_each_chunk(stride, [&](int chunk, int column) {
        const uint4 loaded = *reinterpret_cast<const uint4*>(source + column);
        const u32 pairs[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
        UNROLL for (int pair = 0; pair < 4; ++pair) {
            const float2 values = unpack<T>(pairs[pair]);
            row[chunk][2 * pair] += values.x;
            row[chunk][2 * pair + 1] += values.y;
        }
    });
}

// Writes (row - mean) / sqrt(variance + epsilon) * weight + bias.
template <class T>
DEVICE void normalize_row(const RowValues& row, const Norm& norm, T* output) {
    float sum = 0.0f;
    for_each_chunk(norm.stride, [&](int chunk, int) {
        UNROLL for (int i = 0; i < kColumnsPerLane; ++i) sum += row[chunk][i];
    });
    const float mean = sum_of_warp(sum) / static_cast<float>(norm.hidden_size);
    float squares = 0.0f;
    for_each_chunk(norm.stride, [&](int chunk, int column) {
        UNROLL for (int i = 0; i < kColumnsPerLane; ++i) {
            const float difference = row[chunk][i] - mean;
            if (column + i < norm.hidden_size) squares += difference * difference;
        }
    });
    const float variance = sum_of_warp(squares) / static_cast<float>(norm.hidden_size);
    const float scale = inverse_sqrt(variance + norm.epsilon);
    for_each_chunk(norm.stride, [&](int chunk, int column) {
        float normal[kColumnsPerLane];
        UNROLL for (int i = 0; i < kColumnsPerLane; ++i)
            normal[i] = (row[chunk][i] - mean) * scale * norm.weight[column + i] + norm.bias[column + i];
        *reinterpret_cast<uint4*>(output + column) =
            uint4{pack<T>(normal[0], normal[1]), pack<T>(normal[2], normal[3]),
                  pack<T>(normal[4], normal[5]), pack<T>(normal[6], normal[7])};
    });
}
