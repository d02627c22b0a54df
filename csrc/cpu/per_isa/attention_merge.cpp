#include <cmath>

#include "core/geometry.h"
#include "cpu/per_isa/entries.h"
#include "cpu/per_isa/vectors.h"

namespace r1 {
namespace R1_ISA_NAMESPACE {
namespace {

template <class T>
void merge_row(const AttentionMergeParams& p, int64_t row) {
    const int D = p.head_dim, begin = p.partial_begin[row], end = p.partial_begin[row + 1];
    for (int head = 0; head < p.num_heads; head++) {
        float top = -INFINITY, sum = 0;
        for (int partial = begin; partial < end; partial++) {
            const float lse = p.partial_lse[int64_t{partial} * p.num_heads + head];
            top = lse > top ? lse : top;
        }
        Vec out[MAX_HEAD_DIM / LANES] = {};
        for (int partial = begin; partial < end; partial++) {
            const int64_t at = int64_t{partial} * p.num_heads + head;
            const float weight = __builtin_exp2f(p.partial_lse[at] - top);
            sum += weight;
            for (int i = 0; i < D / LANES; i++)
                out[i] = multiply_add(splat(weight), load(p.partial_output + at * D + i * LANES), out[i]);
        }
        const Vec total = splat(begin == end ? 1.0f : sum);
        T* output = static_cast<T*>(p.output) + row * p.output_row_stride + head * p.output_head_stride;
        for (int i = 0; i < D / LANES; i++) store(output + i * LANES, out[i] / total);
        constexpr float LN_2 = 0.693147180559945f;
        if (p.lse) p.lse[row * p.num_heads + head] = begin == end ? -INFINITY : (top + __builtin_log2f(sum)) * LN_2;
    }
}

}  // namespace

void merge_rows(const AttentionMergeParams& p, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++) {
        if (p.dtype == static_cast<int32_t>(DType::bf16)) merge_row<BF16>(p, row);
        if (p.dtype == static_cast<int32_t>(DType::fp16)) merge_row<FP16>(p, row);
        if (p.dtype == static_cast<int32_t>(DType::fp32)) merge_row<float>(p, row);
    }
}

}  // namespace R1_ISA_NAMESPACE
}  // namespace r1
