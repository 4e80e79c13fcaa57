// What follows a linear layer, element by element, in f32.
#pragma once
#include "device.cuh"

enum class Activation : u32 { kIdentity, kGelu, kGeluTanh, kRelu, kTanh };

// x/2 * (1 + erf(x / sqrt(2))), as x * Phi(x) with Phi(x) = 1 / (1 + 2^(-x P(x^2))): P is fitted to
// log2(Phi(x) / Phi(-x)) / x over |x| <= 6; the largest error is 1.2e-5, a 40th of the tanh form's.
DEVICE float gelu(float x) {
    // A comparison, not a minimum: NaN stays NaN.
    const float square = x * x < 36.0f ? x * x : 36.0f;
    float log_odds = -2.48363521e-5f;
    log_odds = log_odds * square - 7.36066805e-4f;
    log_odds = log_odds * square + 0.105982763f;
    log_odds = log_odds * square + 2.30164712f;
    return quotient(x, 1.0f + exp2_approx(-x * log_odds));
}

// x/2 * (1 + tanh(y)) = x / (1 + e^(-2y)), y = sqrt(2/pi) * (x + 0.044715 x^3)
DEVICE float gelu_tanh(float x) {
    constexpr float kTwoRootTwoOverPiLog2E = 2.302208198f;
    return quotient(x, 1.0f + exp2_approx(-kTwoRootTwoOverPiLog2E * (x + 0.044715f * x * x * x)));
}

// 1 - 2 / (1 + e^(2x)): as exact as numbers around 1 are.
DEVICE float hyperbolic_tangent(float x) {
    constexpr float kTwoLog2E = 2.885390082f;
    return 1.0f - quotient(2.0f, 1.0f + exp2_approx(kTwoLog2E * x));
}

// Calls `use(activate)`, where `activate(x)` is what `activation` says: one decision for many numbers.
template <class Use> DEVICE void with_activation(Activation activation, Use use) {
    switch (activation) {
        case Activation::kIdentity: return use([](float x) { return x; });
        case Activation::kGelu: return use([](float x) { return gelu(x); });
        case Activation::kGeluTanh: return use([](float x) { return gelu_tanh(x); });
        // Not a maximum, which would hide NaN.
        case Activation::kRelu: return use([](float x) { return x < 0.0f ? 0.0f : x; });
        case Activation::kTanh: return use([](float x) { return hyperbolic_tangent(x); });
    }
}
