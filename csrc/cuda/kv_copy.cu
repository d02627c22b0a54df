#include "cuda/kv_copy.cuh"

#include <algorithm>

namespace r1 {
namespace {

void copy_tiles(const char* op, const KvCopyParams& params, intptr_t stream) {
    check_moves(op, params);
    for (int32_t begin = 0; begin < params.num_pairs; begin += COPY_PAIRS) {
        KvCopyBatch batch;
        batch.copy = params;
        batch.copy.num_pairs = std::min(COPY_PAIRS, params.num_pairs - begin);
        std::copy_n(params.source_page + begin, batch.copy.num_pairs, batch.source);
        std::copy_n(params.destination_page + begin, batch.copy.num_pairs, batch.destination);
        const int64_t tiles = int64_t{batch.copy.num_pairs} * params.num_kv_heads * params.num_layers;
        launch(op, kv_copy_kernel, {static_cast<unsigned>(tiles), 2, COPY_THREADS, 0}, batch, stream);
    }
}

}  // namespace

void kv_copy_cuda(const KvCopyParams& params, intptr_t stream) { copy_tiles("kv_copy", params, stream); }
void kv_swap_cuda(const KvCopyParams& params, intptr_t stream) { copy_tiles("kv_swap", params, stream); }

}  // namespace r1
