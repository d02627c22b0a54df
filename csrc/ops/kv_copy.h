// kv_copy: whole pages, K and V of every layer, to other pages of the same cache. kv_swap: between the device's cache
// and the host's.
#pragma once
#include <cstdint>

namespace r1 {

// Strides count bytes; a tile is the PAGE_TOKENS * head_dim numbers of a (layer, page, head), contiguous, and begins on
// 16 bytes. The lists are in host memory on every device: they are checked before anything is copied.
struct KvCopyParams {
    const void* source_key = nullptr;           // [layers, num_source_pages, K, PAGE_TOKENS, D]
    const void* source_value = nullptr;
    void* destination_key = nullptr;            // out [layers, num_destination_pages, K, PAGE_TOKENS, D]
    void* destination_value = nullptr;
    const int32_t* source_page = nullptr;       // [num_pairs]
    const int32_t* destination_page = nullptr;  // [num_pairs]
    int64_t source_layer_stride = 0, source_page_stride = 0, source_head_stride = 0;
    int64_t destination_layer_stride = 0, destination_page_stride = 0, destination_head_stride = 0;
    int64_t tile_bytes = 0;
    int32_t num_pairs = 0, num_layers = 0, num_kv_heads = 0;
    int32_t num_source_pages = 0, num_destination_pages = 0;
};

// Throws std::invalid_argument for pages out of range, a destination that is listed twice, or, within one cache, a page
// that is both a source and a destination: what is copied must not depend on the order.
void check_moves(const char* op, const KvCopyParams& params);

void kv_copy_cuda(const KvCopyParams& params, intptr_t stream);
void kv_copy_cpu(const KvCopyParams& params, int num_threads);
void kv_swap_cuda(const KvCopyParams& params, intptr_t stream);
void kv_swap_cpu(const KvCopyParams& params, int num_threads);

}  // namespace r1
