// Weights of tokens as integers, so that every sum of them is exact: the same whatever the order, the threads, the
// vectors' width or the device. A weight is 2^y, y = (logit - largest logit) log2(e) / temperature <= 0.
#pragma once
#include <cstdint>

namespace r1 {

// A mass counts units of 2^-43: 2^20 tokens of weight 1 fit 63 bits, and what rounding loses of so many is below 2^-24.
constexpr int MASS_BITS = 43;
constexpr double MASS_ONE = 8796093022208.0;  // 2^43
// Rounding fp32 in two steps, each an addition: numbers near MASS_HIGH are multiples of 2^-20, those near MASS_LOW of
// 2^-43. The bits of a sum less those of the constant are then the integer.
constexpr float MASS_HIGH = 12.0f;
constexpr float MASS_LOW = 0x1.8p-20f;
constexpr int32_t MASS_HIGH_BITS = 0x41400000, MASS_LOW_BITS = 0x35C00000;
constexpr int MASS_HIGH_SHIFT = 23;  // from units of 2^-20 to those of 2^-43

// Below it 2^y is less than half a unit: what is clamped to it has no mass.
constexpr float LEAST_LOG2_WEIGHT = -64.0f;
constexpr float MASSLESS_LOG2_WEIGHT = -45.0f;

// 2^x = 1 + x (C5 + x (C4 + ...)) on [-1/2, 1/2] (Cephes), each product and sum rounded alone: not every CPU has fused
// ones. 2^0 is 1 exactly.
constexpr float EXP2_0 = 1.535336188319500e-4f, EXP2_1 = 1.339887440266574e-3f, EXP2_2 = 9.618437357674640e-3f,
                EXP2_3 = 5.550332471162809e-2f, EXP2_4 = 2.402264791363012e-1f, EXP2_5 = 6.931472028550421e-1f;
constexpr float EXP2_ROUND = 0x1.8p23f;  // adding it leaves the nearest integer in the lowest bits

}  // namespace r1
