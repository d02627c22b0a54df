// attention_merge: a row's partial results -> its attention output, in the order of the chunks.
#pragma once
#include <cstdint>

#include "core/numbers.h"

namespace r1 {

// S rows, H query heads, D head_dim.
struct AttentionMergeParams {
    const float* partial_output = nullptr;   // [max_partials, H, D]
    const float* partial_lse = nullptr;      // [max_partials, H] base 2
    const int32_t* partial_begin = nullptr;  // [S + 1]
    void* output = nullptr;                  // out [S, H, D]; zero for a row without tokens
    float* lse = nullptr;                    // out [S, H] natural logarithm, -inf for a row without tokens; or nullptr
    int64_t output_row_stride = 0, output_head_stride = 0;
    int32_t num_rows = 0, num_heads = 0, head_dim = 0;
    int32_t dtype = 0;  // of the output
};

void attention_merge_cuda(const AttentionMergeParams& params, intptr_t stream);
void attention_merge_cpu(const AttentionMergeParams& params, int num_threads);

}  // namespace r1
