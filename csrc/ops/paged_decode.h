// paged_decode: attention of one query token for each row, chunk by chunk, unmerged.
#pragma once
#include <cstdint>

#include "core/numbers.h"
#include "ops/decode_plan.h"

namespace r1 {

// S rows (sequences), H query heads, K KV heads, D head_dim, P pages, G groups. Strides count elements.
struct PagedDecodeParams {
    const void* query = nullptr;              // [S, H, D]
    const void* key_pages = nullptr;          // [P, K, PAGE_TOKENS, D]; a (page, head) tile is contiguous
    const void* value_pages = nullptr;        // [P, K, PAGE_TOKENS, D]
    const int32_t* suffix_pages = nullptr;    // [S, suffix_table_stride] pages of a row's own tokens
    const int32_t* prefix_pages = nullptr;    // [G, prefix_table_stride] pages of a group's prefix
    const DecodeItem* item = nullptr;         // [max_items] by decode_plan
    const int32_t* status = nullptr;          // [PLAN_STATUS_WORDS]
    const int32_t* member = nullptr;          // [S]
    const int32_t* partial_begin = nullptr;   // [S + 1]
    float* partial_output = nullptr;          // out [max_partials, H, D] normalised within its chunk
    float* partial_lse = nullptr;             // out [max_partials, H] log2 of the sum of 2^score, score in powers of two
    int64_t query_row_stride = 0, query_head_stride = 0;
    int64_t page_stride = 0, page_head_stride = 0;
    int32_t suffix_table_stride = 0, prefix_table_stride = 0;
    int32_t num_heads = 0, num_kv_heads = 0, head_dim = 0, num_pages = 0, max_items = 0;
    float scale = 0;  // of q k, positive
    int32_t dtype = 0;
};

void paged_decode_cuda(const PagedDecodeParams& params, intptr_t stream);
void paged_decode_cpu(const PagedDecodeParams& params, int num_threads);

}  // namespace r1
