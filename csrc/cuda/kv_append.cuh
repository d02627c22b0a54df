// A few lanes for each (token, head): every lane has eight numbers of the lower half of the head and the eight that they
// rotate with, in two 16-byte loads.
#pragma once
#include "core/geometry.h"
#include "cuda/primitives.cuh"
#include "ops/kv_append.h"

namespace r1 {

constexpr int APPEND_THREADS = 256;
constexpr int UNIT = 8;  // 16-bit numbers in 16 bytes

struct alignas(16) Unit {
    uint32_t pairs[UNIT / 2];
};

// Lanes for a head: D / 16 rounded up to a power of two, so that a shuffle sums over them.
template <int D>
constexpr int append_lanes = D == 64 ? 4 : D == 256 ? 16 : 8;

template <class T>
R1_DEVICE void load_unit(float (&x)[UNIT], const T* from) {
    const Unit unit = *reinterpret_cast<const Unit*>(from);
#pragma unroll
    for (int i = 0; i < UNIT; i++) x[i] = to_float(T{static_cast<uint16_t>(unit.pairs[i / 2] >> (16 * (i % 2)))});
}

template <class T>
R1_DEVICE void store_unit(T* to, const float (&x)[UNIT]) {
    Unit unit;
#pragma unroll
    for (int i = 0; i < UNIT; i += 2) unit.pairs[i / 2] = pack<T>(x[i], x[i + 1]);
    *reinterpret_cast<Unit*>(to) = unit;
}

// One head of one token: what is read, what is done to it, where it goes. nullptr: nothing is done, or nothing is kept.
template <class T>
struct AppendRow {
    const T *from, *bias, *norm;
    const float *cosine, *sine;
    T* to;
};

template <class T>
R1_DEVICE AppendRow<T> append_row(const KvAppendParams& p, int token, int head) {
    AppendRow<T> row{};
    const int D = p.head_dim, slot = p.slot[token];
    const int64_t page_offset = slot / PAGE_TOKENS * p.page_stride + slot % PAGE_TOKENS * D;
    const bool keep = slot >= 0 && slot / PAGE_TOKENS < p.num_pages;
    const int num_queries = p.query ? p.num_heads : 0;
    const T* bias = nullptr;
    bool rotates = p.cosine != nullptr;
    if (head < num_queries) {
        row.from = static_cast<const T*>(p.query) + token * p.query_token_stride + head * p.query_head_stride;
        row.to = static_cast<T*>(p.query_out) + token * p.query_out_token_stride + head * p.query_out_head_stride;
        row.norm = static_cast<const T*>(p.query_norm);
        bias = static_cast<const T*>(p.query_bias);
    } else if ((head -= num_queries) < p.num_kv_heads) {
        row.from = static_cast<const T*>(p.key) + token * p.key_token_stride + head * p.key_head_stride;
        row.to = keep ? static_cast<T*>(p.key_pages) + page_offset + head * p.page_head_stride : nullptr;
        row.norm = static_cast<const T*>(p.key_norm);
        bias = static_cast<const T*>(p.key_bias);
    } else {
        head -= p.num_kv_heads;
        row.from = static_cast<const T*>(p.value) + token * p.value_token_stride + head * p.value_head_stride;
        row.to = keep ? static_cast<T*>(p.value_pages) + page_offset + head * p.page_head_stride : nullptr;
        bias = static_cast<const T*>(p.value_bias);
        rotates = false;
    }
    row.bias = bias ? bias + head * D : nullptr;
    if (rotates) {
        const int last = p.num_positions - 1, asked = p.position[token];
        const int64_t position = asked < 0 ? 0 : asked > last ? last : asked;  // the checked layer refuses such positions
        row.cosine = p.cosine + position * (D / 2);
        row.sine = p.sine + position * (D / 2);
    }
    return row;
}

template <class T, int D>
R1_KERNEL(APPEND_THREADS, 4) kv_append_kernel(const KvAppendParams p) {
    constexpr int LANES = append_lanes<D>, HALF = D / 2;
    const int heads = (p.query ? p.num_heads : 0) + 2 * p.num_kv_heads;
    const int64_t number = (static_cast<int64_t>(blockIdx.x) * APPEND_THREADS + threadIdx.x) / LANES;
    const int at = threadIdx.x % LANES * UNIT;
    // Lanes past the end stay for the shuffles, with nothing to read.
    const bool active = number < static_cast<int64_t>(p.num_tokens) * heads && at < HALF;
    AppendRow<T> row{};
    if (active) row = append_row<T>(p, static_cast<int>(number / heads), static_cast<int>(number % heads));

    float low[UNIT] = {}, high[UNIT] = {}, other[UNIT];
    if (active) {
        load_unit(low, row.from + at);
        load_unit(high, row.from + HALF + at);
    }
    if (row.bias) {
        load_unit(other, row.bias + at);
#pragma unroll
        for (int i = 0; i < UNIT; i++) low[i] += other[i];
        load_unit(other, row.bias + HALF + at);
#pragma unroll
        for (int i = 0; i < UNIT; i++) high[i] += other[i];
    }
    if (p.query_norm || p.key_norm) {  // the same for the whole warp, unlike row.norm
        float squares = 0;
#pragma unroll
        for (int i = 0; i < UNIT; i++) squares += low[i] * low[i] + high[i] * high[i];
#pragma unroll
        for (int mask = LANES / 2; mask; mask /= 2) squares += shuffle_xor(squares, mask);
        const float factor = reciprocal_sqrt(squares / D + p.norm_eps);
        if (row.norm) {
            load_unit(other, row.norm + at);
#pragma unroll
            for (int i = 0; i < UNIT; i++) low[i] *= factor * other[i];
            load_unit(other, row.norm + HALF + at);
#pragma unroll
            for (int i = 0; i < UNIT; i++) high[i] *= factor * other[i];
        }
    }
    if (row.cosine) {
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            const float cosine = row.cosine[at + i], sine = row.sine[at + i], x = low[i], y = high[i];
            low[i] = x * cosine - y * sine;
            high[i] = y * cosine + x * sine;
        }
    }
    if (row.to) {
        store_unit(row.to + at, low);
        store_unit(row.to + HALF + at, high);
    }
}

}  // namespace r1
