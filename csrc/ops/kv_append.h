// kv_append: write the keys and values of new tokens to their pages, on the way add a bias, normalise and rotate.
#pragma once
#include <cstdint>

#include "core/numbers.h"

namespace r1 {

// T tokens, H query heads, K KV heads, D head_dim, P pages. Strides count elements; the last dimension is contiguous and
// every row of D begins on 16 bytes.
struct KvAppendParams {
    const void* query = nullptr;         // [T, H, D]; nullptr: queries are left alone
    const void* key = nullptr;           // [T, K, D]
    const void* value = nullptr;         // [T, K, D]
    void* query_out = nullptr;           // [T, H, D]; may be `query`
    void* key_pages = nullptr;           // [P, K, PAGE_TOKENS, D]
    void* value_pages = nullptr;         // [P, K, PAGE_TOKENS, D]
    const int32_t* slot = nullptr;       // [T] page * PAGE_TOKENS + place in the page; negative: written nowhere
    const int32_t* position = nullptr;   // [T] of the rotation
    const void* query_bias = nullptr;    // [H, D] or nullptr
    const void* key_bias = nullptr;      // [K, D] or nullptr
    const void* value_bias = nullptr;    // [K, D] or nullptr
    const void* query_norm = nullptr;    // [D] weights of the RMS norm of each head, or nullptr
    const void* key_norm = nullptr;      // [D] or nullptr
    const float* cosine = nullptr;       // [num_positions, D / 2] or nullptr: no rotation
    const float* sine = nullptr;         // [num_positions, D / 2]
    int64_t query_token_stride = 0, query_head_stride = 0;
    int64_t key_token_stride = 0, key_head_stride = 0;
    int64_t value_token_stride = 0, value_head_stride = 0;
    int64_t query_out_token_stride = 0, query_out_head_stride = 0;
    int64_t page_stride = 0, page_head_stride = 0;  // of key_pages and of value_pages
    int32_t num_tokens = 0, num_heads = 0, num_kv_heads = 0, head_dim = 0, num_pages = 0, num_positions = 0;
    float norm_eps = 0;
    int32_t dtype = 0;  // DType of all but cosine and sine
};

void kv_append_cuda(const KvAppendParams& params, intptr_t stream);
void kv_append_cpu(const KvAppendParams& params, int num_threads);

}  // namespace r1
