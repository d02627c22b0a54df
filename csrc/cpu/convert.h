// One number to fp32 and back, rounded to nearest even, on any CPU. Whole rows go through csrc/cpu/per_isa.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/numbers.h"

namespace r1 {
namespace {  // a copy for each file: csrc/cpu/per_isa compiles them for several instruction sets

inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float to_float(float x) { return x; }

inline float to_float(BF16 x) { return float_of_bits(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(FP16 x) {
    const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7FFF;
    if (rest >= 0x7C00) return float_of_bits(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    // Scaling by 2^112 moves the exponent's bias, and subnormals become normal on the way.
    return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
}

template <class T>
T from_float(float value);

template <>
inline float from_float<float>(float value) {
    return value;
}

template <>
inline BF16 from_float<BF16>(float value) {
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return {static_cast<uint16_t>(bits >> 16 | 0x40)};  // NaN stays NaN
    return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

template <>
inline FP16 from_float<FP16>(float value) {
    const uint32_t bits = bits_of_float(value), rest = bits & 0x7FFFFFFF;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    if (rest > 0x7F800000) return {static_cast<uint16_t>(sign | 0x7E00)};
    if (rest >= 0x477FF000) return {static_cast<uint16_t>(sign | 0x7C00)};  // 65520 and above round to infinity
    if (rest < 0x38800000) {  // a subnormal is a multiple of 2^-24: adding 1/2 rounds to one
        const uint32_t rounded = bits_of_float(float_of_bits(rest) + 0.5f) - bits_of_float(0.5f);
        return {static_cast<uint16_t>(sign | rounded)};
    }
    return {static_cast<uint16_t>(sign | ((rest + 0xFFF + (rest >> 13 & 1)) - 0x38000000) >> 13)};
}

}  // namespace
}  // namespace r1
