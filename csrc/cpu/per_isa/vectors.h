// Sixteen fp32 at once, on any instruction set: the compiler splits them where registers are narrower.
#pragma once
#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "cpu/convert.h"
#include "cpu/per_isa/isa_namespace.h"

namespace r1 {
namespace R1_ISA_NAMESPACE {
namespace {

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec __attribute__((vector_size(32)));
typedef uint32_t WordVec __attribute__((vector_size(64)));

template <class To, class From>
inline To bits_as(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "same bits");
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline Vec splat(float x) { return Vec{} + x; }

inline Vec load(const float* from) {
    Vec x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

inline Vec load(const BF16* from) {
    HalfVec half;
    std::memcpy(&half, from, sizeof half);
    return bits_as<Vec>(__builtin_convertvector(half, WordVec) << 16);
}

inline Vec load(const FP16* from) {
#ifdef __F16C__
    typedef _Float16 Fp16Vec __attribute__((vector_size(32)));
    Fp16Vec half;
    std::memcpy(&half, from, sizeof half);
    return __builtin_convertvector(half, Vec);
#else
    Vec x;
    for (int i = 0; i < LANES; i++) x[i] = to_float(from[i]);
    return x;
#endif
}

inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

template <class T>
inline void store(T* to, Vec x) {
    for (int i = 0; i < LANES; i++) to[i] = from_float<T>(x[i]);
}

// x * y + z, rounded once where the machine can. These files are compiled with -ffp-contract=off, so that nothing else
// is fused and every row of a batch is computed alike.
inline Vec multiply_add(Vec x, Vec y, Vec z) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    Vec out;
    for (int i = 0; i < LANES; i++) out[i] = __builtin_fmaf(x[i], y[i], z[i]);
    return out;
#else
    return x * y + z;
#endif
}

inline float sum(Vec x) {
    for (int distance = LANES / 2; distance; distance /= 2)
        for (int i = 0; i < distance; i++) x[i] += x[i + distance];
    return x[0];
}

// 2^x to 2e-7 for x <= 0: Cephes' polynomial on [-1/2, 1/2], and 0 below -126.
inline Vec exp2(Vec x) {
    const IntVec tiny = x < splat(-126.0f);
    const Vec clamped = bits_as<Vec>((bits_as<IntVec>(x) & ~tiny));
    const Vec magic = splat(0x1.8p23f), shifted = clamped + magic;  // the integer nearest to x is in the lowest bits
    const Vec rest = clamped - (shifted - magic);
    Vec y = splat(1.535336188319500e-4f);
    for (float c : {1.339887440266574e-3f, 9.618437357674640e-3f, 5.550332471162809e-2f, 2.402264791363012e-1f,
                    6.931472028550421e-1f, 1.0f})
        y = multiply_add(y, rest, splat(c));
    const IntVec exponent = bits_as<IntVec>(shifted) << 23;
    return bits_as<Vec>((bits_as<IntVec>(y) + exponent) & ~tiny);
}

}  // namespace
}  // namespace R1_ISA_NAMESPACE
}  // namespace r1
