#include "cuda/kv_append.cuh"

#include <type_traits>

#include "cuda/dispatch.h"

namespace r1 {

void kv_append_cuda(const KvAppendParams& params, intptr_t stream) {
    dispatch("kv_append", params.dtype, params.head_dim, [&](auto number, auto head_dim) {
        constexpr int D = decltype(head_dim)::value;
        const int64_t heads = (params.query ? params.num_heads : 0) + 2 * params.num_kv_heads;
        const int64_t threads = params.num_tokens * heads * append_lanes<D>;
        const auto blocks = static_cast<unsigned>((threads + APPEND_THREADS - 1) / APPEND_THREADS);
        launch("kv_append", kv_append_kernel<decltype(number), D>, {blocks, 1, APPEND_THREADS, 0}, params, stream);
    });
}

}  // namespace r1
