// A register of fp32 on any instruction set, by the compiler's vector extensions; intrinsics where those are slow.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/numbers.h"
#include "cpu/convert.h"
#include "cpu/per_isa/isa_namespace.h"

namespace r1 {
namespace R1_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t IntVec __attribute__((vector_size(4 * LANES)));
typedef uint32_t WordVec __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * LANES)));

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

inline void store(float* to, Vec x) { std::memcpy(to, &x, sizeof x); }

inline void store(BF16* to, Vec x) {
    const WordVec bits = bits_as<WordVec>(x), rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    const WordVec nan = bits_as<WordVec>(x != x);  // rounding could carry a NaN into infinity
    const HalfVec half = __builtin_convertvector((rounded & ~nan) | ((bits >> 16 | 0x40) & nan), HalfVec);
    std::memcpy(to, &half, sizeof half);
}

#if defined(__AVX512F__)
inline Vec load(const FP16* from) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline void store(FP16* to, Vec x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
inline Vec load(const FP16* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }
inline void store(FP16* to, Vec x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Vec load(const FP16* from) {
    Vec x;
    for (int i = 0; i < LANES; i++) x[i] = to_float(from[i]);
    return x;
}
inline void store(FP16* to, Vec x) {
    for (int i = 0; i < LANES; i++) to[i] = from_float<FP16>(x[i]);
}
#endif

// x * y + z, rounded once where the machine can. These files are compiled with -ffp-contract=off, so that nothing else
// is fused and every row of a batch is computed alike.
inline Vec multiply_add(Vec x, Vec y, Vec z) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(x, y, z);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(x, y, z);
#else
    return x * y + z;
#endif
}

inline float sum(Vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(x);
#elif defined(__AVX2__)
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
#else
    return (x[0] + x[2]) + (x[1] + x[3]);
#endif
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
