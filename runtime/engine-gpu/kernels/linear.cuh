// What all linear layers end with.
#pragma once
#include "activation.cuh"

// Writes two neighbours at `place` of `output`, each added to what `residual` has there, rounded once.
template <class T>
DEVICE void store_pair(T* output, const T* residual, i64 place, float first, float second) {
    if (residual) {
        const float2 there = unpack<T>(*reinterpret_cast<const u32*>(residual + place));
        first += there.x;
        second += there.y;
    }
    *reinterpret_cast<u32*>(output + place) = pack<T>(first, second);
}
