// A warp for each (row, head): bandwidth-bound, about 3% of the bytes of the KV chunks that it merges.
#pragma once
#include "cuda/primitives.cuh"
#include "ops/attention_merge.h"

namespace r1 {

constexpr int MERGE_WARPS = 8;

template <class T, int D>
R1_KERNEL(MERGE_WARPS * 32, 4) attention_merge_kernel(const AttentionMergeParams p) {
    constexpr int N = D / 32;  // numbers of a lane: lane, lane + 32, ...
    const int lane = threadIdx.x % 32;
    const int64_t pair = static_cast<int64_t>(blockIdx.x) * MERGE_WARPS + threadIdx.x / 32;
    if (pair >= static_cast<int64_t>(p.num_rows) * p.num_heads) return;
    const int row = static_cast<int>(pair / p.num_heads), head = static_cast<int>(pair % p.num_heads);
    const int begin = p.partial_begin[row], end = p.partial_begin[row + 1];

    float top = -INFINITY;
    for (int partial = begin + lane; partial < end; partial += 32) {
        const float lse = p.partial_lse[static_cast<int64_t>(partial) * p.num_heads + head];
        top = lse > top ? lse : top;
    }
    for (int mask = 16; mask; mask /= 2) {
        const float other = shuffle_xor(top, mask);
        top = other > top ? other : top;
    }
    // One chunk after the other, so that the sum's rounding depends on the row's own tokens alone.
    float sum = 0, out[N] = {};
    for (int partial = begin; partial < end; partial++) {
        const int64_t at = static_cast<int64_t>(partial) * p.num_heads + head;
        const float weight = fast_exp2(p.partial_lse[at] - top);
        sum += weight;
#pragma unroll
        for (int i = 0; i < N; i++) out[i] += weight * p.partial_output[at * D + lane + 32 * i];
    }
    const bool empty = begin == end;
    T* output = static_cast<T*>(p.output) + row * p.output_row_stride + head * p.output_head_stride;
#pragma unroll
    for (int i = 0; i < N; i++) {
        const uint32_t rounded = pack<T>(empty ? 0.0f : out[i] / sum, 0.0f);
        output[lane + 32 * i] = T{static_cast<uint16_t>(rounded)};
    }
    constexpr float LN_2 = 0.693147180559945f;
    if (p.lse && lane == 0) p.lse[pair] = empty ? -INFINITY : (top + fast_log2(sum)) * LN_2;
}

}  // namespace r1
