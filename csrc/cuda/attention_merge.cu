#include "cuda/attention_merge.cuh"

#include <type_traits>

#include "cuda/dispatch.h"

namespace r1 {

void attention_merge_cuda(const AttentionMergeParams& params, intptr_t stream) {
    dispatch("attention_merge", params.dtype, params.head_dim, [&](auto number, auto head_dim) {
        const int64_t pairs = static_cast<int64_t>(params.num_rows) * params.num_heads;
        const auto blocks = static_cast<unsigned>((pairs + MERGE_WARPS - 1) / MERGE_WARPS);
        launch("attention_merge", attention_merge_kernel<decltype(number), decltype(head_dim)::value>,
               {blocks, 1, MERGE_WARPS * 32, 0}, params, stream);
    });
}

}  // namespace r1
