// The two matrix products of a page of 64 tokens: scores = Q K^T and output += P V, for up to 64 query rows.
//
// A page of K or V is first brought to a form that all rows read: fp32, or for bf16 on AVX512-BF16 pairs of numbers as
// its dot product takes them. Then a few rows at a time stay in registers.
//
// Pages lie anywhere in memory, where the hardware does not see the next one coming: while a tile is read, the same place
// of the tile that follows (`next`: a page's V after its K, then the next page's K) is fetched.
#pragma once
#include "core/geometry.h"
#include "cpu/per_isa/vectors.h"
#include "ops/decode_plan.h"
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace r1 {
namespace R1_ISA_NAMESPACE {
namespace {

constexpr int PRODUCT_ROWS = prefix_rows(64);

// Calls run(std::integral_constant-like N) for the least of 4, 2, 1 rows at a time until `count` are done.
template <int N>
struct Count {
    static constexpr int value = N;
};
template <class Run>
inline void by_fours(int count, Run&& run) {
    int at = 0;
    for (; at + 4 <= count; at += 4) run(at, Count<4>{});
    if (at + 2 <= count) {
        run(at, Count<2>{});
        at += 2;
    }
    if (at < count) run(at, Count<1>{});
}

// fp32 arithmetic, for every dtype and instruction set.
template <class T>
class PageProducts {
public:
    void set_query(int row, const T* query, int D) {
        for (int d = 0; d < D; d += LANES) store(query_ + row * D + d, load(query + d));
    }

    // out[row, token] for tokens below num_tokens; the others are not read.
    void scores(const T* keys, const T* next, int num_tokens, int num_rows, int D, float* out) {
        for (int i = 0; i < num_tokens * D; i += LANES) {
            __builtin_prefetch(next + i);
            store(page_ + i, load(keys + i));
        }
        by_fours(num_rows, [&](int row, auto rows) {
            constexpr int N = decltype(rows)::value;
            int t = 0;
            for (; t + 2 <= num_tokens; t += 2) score<N, 2>(row, t, D, out);
            if (t < num_tokens) score<N, 1>(row, t, D, out);
        });
    }

    // out[row, d] += weights[row, token] values[token, d] over tokens below num_tokens.
    void add_values(const T* values, const T* next, int num_tokens, int num_rows, int D, const float* weights,
                    float* out) {
        for (int i = 0; i < num_tokens * D; i += LANES) {
            __builtin_prefetch(next + i);
            store(page_ + i, load(values + i));
        }
        by_fours(num_rows, [&](int row, auto rows) {
            constexpr int N = decltype(rows)::value;
            int d = 0;
            for (; d + 2 * LANES <= D; d += 2 * LANES) add_columns<N, 2>(row, num_tokens, D, d, weights, out);
            if (d < D) add_columns<N, 1>(row, num_tokens, D, d, weights, out);
        });
    }

private:
    // Scores of N rows and TOKENS tokens, so that enough sums run beside each other.
    template <int N, int TOKENS>
    void score(int row, int t, int D, float* out) const {
        Vec dot[N][TOKENS] = {};
        for (int d = 0; d < D; d += LANES)
            for (int i = 0; i < TOKENS; i++) {
                const Vec key = load(page_ + (t + i) * D + d);
                for (int n = 0; n < N; n++) dot[n][i] = multiply_add(key, load(query_ + (row + n) * D + d), dot[n][i]);
            }
        for (int n = 0; n < N; n++)
            for (int i = 0; i < TOKENS; i++) out[(row + n) * PAGE_TOKENS + t + i] = sum(dot[n][i]);
    }

    template <int N, int VECTORS>
    void add_columns(int row, int num_tokens, int D, int d, const float* weights, float* out) const {
        Vec total[N][VECTORS];
        for (int n = 0; n < N; n++)
            for (int v = 0; v < VECTORS; v++) total[n][v] = load(out + (row + n) * D + d + v * LANES);
        for (int t = 0; t < num_tokens; t++)
            for (int v = 0; v < VECTORS; v++) {
                const Vec value = load(page_ + t * D + d + v * LANES);
                for (int n = 0; n < N; n++)
                    total[n][v] = multiply_add(splat(weights[(row + n) * PAGE_TOKENS + t]), value, total[n][v]);
            }
        for (int n = 0; n < N; n++)
            for (int v = 0; v < VECTORS; v++) store(out + (row + n) * D + d + v * LANES, total[n][v]);
    }

    alignas(64) float query_[PRODUCT_ROWS * MAX_HEAD_DIM];
    alignas(64) float page_[PAGE_TOKENS * MAX_HEAD_DIM];
};

#if defined(__AVX512BF16__)

// Pairs of bf16, accumulated in fp32: vdpbf16ps takes 32 products at a time.
template <>
class PageProducts<BF16> {
public:
    void set_query(int row, const BF16* query, int D) {
        std::memcpy(query_ + row * (D / 2), query, sizeof(BF16) * static_cast<size_t>(D));
    }

    void scores(const BF16* keys, const BF16* next, int num_tokens, int num_rows, int D, float* out) {
        for (int t = 0; t < num_tokens; t += LANES)
            for (int pair = 0; pair < D / 2; pair += LANES) {
                for (int i = 0; i < LANES; i++) __builtin_prefetch(next + (t + i) * D + 2 * pair);
                transpose(keys + t * D + 2 * pair, num_tokens - t, D, D / 2 - pair, page_ + pair * PAGE_TOKENS + t);
            }
        by_fours(num_rows, [&](int row, auto rows) {
            constexpr int N = decltype(rows)::value, VECTORS = PAGE_TOKENS / LANES;
            __m512 dot[N][VECTORS] = {};
            for (int pair = 0; pair < D / 2; pair++)
                for (int v = 0; v < VECTORS; v++) {
                    const __m512bh key = pairs(page_ + pair * PAGE_TOKENS + v * LANES);
                    for (int n = 0; n < N; n++)
                        dot[n][v] = _mm512_dpbf16_ps(dot[n][v], key, splat_pair(query_[(row + n) * (D / 2) + pair]));
                }
            for (int n = 0; n < N; n++)
                for (int v = 0; v < VECTORS; v++)
                    _mm512_storeu_ps(out + (row + n) * PAGE_TOKENS + v * LANES, dot[n][v]);
        });
    }

    void add_values(const BF16* values, const BF16* next, int num_tokens, int num_rows, int D, const float* weights,
                    float* out) {
        const int num_pairs = (num_tokens + 1) / 2;
        for (int pair = 0; pair < num_pairs; pair++) {
            for (int d = 0; d < 2 * D; d += 2 * LANES) __builtin_prefetch(next + 2 * pair * D + d);
            interleave(values + 2 * pair * D, 2 * pair + 1 < num_tokens, D, page_ + pair * D);
        }
        for (int row = 0; row < num_rows; row++) round_weights(weights + row * PAGE_TOKENS, row);
        by_fours(num_rows, [&](int row, auto rows) {
            constexpr int N = decltype(rows)::value;
            int d = 0;
            for (; d + 4 * LANES <= D; d += 4 * LANES) add_columns<N, 4>(row, num_pairs, D, d, out);
            for (; d < D; d += LANES) add_columns<N, 1>(row, num_pairs, D, d, out);
        });
    }

private:
    static __m512bh pairs(const uint32_t* from) { return bits_as<__m512bh>(_mm512_loadu_si512(from)); }
    static __m512bh splat_pair(uint32_t pair) { return bits_as<__m512bh>(_mm512_set1_epi32(static_cast<int>(pair))); }

    // 16 tokens by 16 pairs: to[pair * PAGE_TOKENS + token]; tokens from `num_tokens` on are zeros and are not read.
    static void transpose(const BF16* keys, int num_tokens, int D, int num_pairs, uint32_t* to) {
        __m512i x[16], y[16];
        const auto mask = static_cast<__mmask16>(num_pairs >= 16 ? 0xFFFF : (1u << num_pairs) - 1);
        for (int t = 0; t < 16; t++)
            x[t] = t < num_tokens ? _mm512_maskz_loadu_epi32(mask, keys + t * D) : _mm512_setzero_si512();
        for (int i = 0; i < 16; i += 2) {
            y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
            y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
        }
        for (int i = 0; i < 16; i += 4) {  // now 4x4 blocks within 128 bits
            x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
            x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
            x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
            x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
        }
        for (int i = 0; i < 4; i++) {
            y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
            y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xDD);
            y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
            y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xDD);
        }
        for (int i = 0; i < 4; i++) {
            x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
            x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xDD);
            x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
            x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xDD);
        }
        for (int pair = 0; pair < 16 && pair < num_pairs; pair++)
            _mm512_storeu_si512(to + pair * PAGE_TOKENS, x[pair]);
    }

    // Two tokens' values beside each other: to[d] = (first token's d, second token's d or 0).
    static void interleave(const BF16* values, bool has_second, int D, uint32_t* to) {
        for (int d = 0; d < D; d += LANES) {
            const __m512i first = _mm512_cvtepu16_epi32(bits_as<__m256i>(half(values + d)));
            const __m512i second =
                has_second ? _mm512_cvtepu16_epi32(bits_as<__m256i>(half(values + D + d))) : _mm512_setzero_si512();
            _mm512_storeu_si512(to + d, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
        }
    }

    static HalfVec half(const BF16* from) {
        HalfVec x;
        std::memcpy(&x, from, sizeof x);
        return x;
    }

    // The row's weights as bf16, two tokens to a word.
    void round_weights(const float* weights, int row) {
        for (int t = 0; t < PAGE_TOKENS; t += 2 * LANES) {
            const __m512bh rounded =
                _mm512_cvtne2ps_pbh(_mm512_loadu_ps(weights + t + LANES), _mm512_loadu_ps(weights + t));
            std::memcpy(weights_ + row * (PAGE_TOKENS / 2) + t / 2, &rounded, sizeof rounded);
        }
    }

    template <int N, int VECTORS>
    void add_columns(int row, int num_pairs, int D, int d, float* out) const {
        __m512 total[N][VECTORS];
        for (int n = 0; n < N; n++)
            for (int v = 0; v < VECTORS; v++) total[n][v] = _mm512_loadu_ps(out + (row + n) * D + d + v * LANES);
        for (int pair = 0; pair < num_pairs; pair++)
            for (int v = 0; v < VECTORS; v++) {
                const __m512bh value = pairs(page_ + pair * D + d + v * LANES);
                for (int n = 0; n < N; n++)
                    total[n][v] = _mm512_dpbf16_ps(total[n][v], value,
                                                   splat_pair(weights_[(row + n) * (PAGE_TOKENS / 2) + pair]));
            }
        for (int n = 0; n < N; n++)
            for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(out + (row + n) * D + d + v * LANES, total[n][v]);
    }

    alignas(64) uint32_t query_[PRODUCT_ROWS * MAX_HEAD_DIM / 2];
    alignas(64) uint32_t weights_[PRODUCT_ROWS * PAGE_TOKENS / 2];
    alignas(64) uint32_t page_[PAGE_TOKENS / 2 * MAX_HEAD_DIM];
};

#endif

}  // namespace
}  // namespace R1_ISA_NAMESPACE
}  // namespace r1
