// Split-KV decode attention over pages: every block takes work items (a chunk of a segment, for one KV head) in turn.
//
// A suffix is read for one sequence: its few query rows are in every warp, and the warps share the tokens, 16 of each
// page. A prefix is read for many sequences: the warps share their query rows, and each reads all tokens. Which way a
// token goes depends on its segment alone, and each way takes a chunk's tokens in one order, so that a row's partial
// result is bitwise the same whatever else is in the batch.
#pragma once
#include "core/geometry.h"
#include "cuda/attention_tile.cuh"
#include "ops/paged_decode.h"

namespace r1 {

constexpr int DECODE_WARPS = PAGE_TOKENS / BLOCK_TOKENS;
constexpr int DECODE_THREADS = DECODE_WARPS * 32;

// Pages of K and V in flight, by what the 163 KiB of an sm_80 block hold; the loads of all but one overlap with work.
constexpr int decode_stages(int head_dim) { return head_dim == 64 ? 4 : head_dim == 256 ? 2 : 3; }
constexpr size_t decode_shared_bytes(int head_dim) {
    return size_t{2} * 2 * PAGE_TOKENS * head_dim * decode_stages(head_dim);
}
// Blocks that an sm_90 multiprocessor's 227 KiB hold.
constexpr int decode_blocks(int head_dim) { return head_dim == 256 ? 1 : 2; }

// The work of a block at one time.
template <int D>
struct Work {
    static constexpr int TILE_BYTES = PAGE_TOKENS * D * 2;
    static constexpr int STAGES = decode_stages(D);

    DecodeItem item;
    const int32_t* pages;  // of the chunk
    int kv_head, first_head, gqa;

    R1_DEVICE int num_pages() const { return (item.num_tokens + PAGE_TOKENS - 1) / PAGE_TOKENS; }
    R1_DEVICE unsigned char* keys(int page) const { return dynamic_shared() + page % STAGES * 2 * TILE_BYTES; }
    R1_DEVICE unsigned char* values(int page) const { return keys(page) + TILE_BYTES; }
    // Of the page-th page: how many of its tokens belong to the chunk.
    R1_DEVICE int tokens(int page) const { return item.num_tokens - page * PAGE_TOKENS; }
};

template <int D>
R1_DEVICE Work<D> work_of(const PagedDecodeParams& p, int number) {
    Work<D> work;
    work.item = p.item[number / p.num_kv_heads];
    work.kv_head = number % p.num_kv_heads;
    work.gqa = p.num_heads / p.num_kv_heads;
    work.first_head = work.kv_head * work.gqa;
    const int32_t* table = work.item.is_prefix ? p.prefix_pages : p.suffix_pages;
    const int stride = work.item.is_prefix ? p.prefix_table_stride : p.suffix_table_stride;
    work.pages = table + static_cast<int64_t>(work.item.segment) * stride + work.item.chunk * CHUNK_PAGES;
    return work;
}

// Begin to copy the rows first..end - 1 of a page's K and V, shared among `lanes` threads of which this is number `lane`.
// Tokens that are not the chunk's become zeros and are not read: other sequences' slots may hold NaN.
template <class T, int D>
R1_DEVICE void copy_page(const PagedDecodeParams& p, const Work<D>& work, int page, int first, int end, int lane,
                         int lanes) {
    constexpr int UNITS = D / 8;
    if (page < work.num_pages()) {
        const int64_t base = work.pages[page] * p.page_stride + work.kv_head * p.page_head_stride;
        const T* keys = static_cast<const T*>(p.key_pages) + base;
        const T* values = static_cast<const T*>(p.value_pages) + base;
        const int num_tokens = work.tokens(page);
        for (int i = first * UNITS + lane; i < end * UNITS; i += lanes) {
            const int offset = unit_offset<D>(i / UNITS, i % UNITS);
            const bool valid = i / UNITS < num_tokens;
            copy_async_16(work.keys(page) + offset, keys + (valid ? i * 8 : 0), valid);
            copy_async_16(work.values(page) + offset, values + (valid ? i * 8 : 0), valid);
        }
    }
    commit_copies();
}

// Where row n of the work's query rows begins in Q, nullptr past their end; rows are heads within members.
template <class T, int D>
R1_DEVICE const T* query_row(const PagedDecodeParams& p, const Work<D>& work, int n) {
    if (n >= work.item.num_members * work.gqa) return nullptr;
    const int row = work.item.is_prefix ? p.member[work.item.first_member + n / work.gqa] : work.item.segment;
    return static_cast<const T*>(p.query) + row * p.query_row_stride +
           (work.first_head + n % work.gqa) * p.query_head_stride;
}

// Which (partial, head) row n's result is.
template <int D>
R1_DEVICE int64_t result_row(const PagedDecodeParams& p, const Work<D>& work, int n) {
    const int row = work.item.is_prefix ? p.member[work.item.first_member + n / work.gqa] : work.item.segment;
    const int64_t partial = p.partial_begin[row] + work.item.slot;
    return partial * p.num_heads + work.first_head + n % work.gqa;
}

// Prefix: warp w has the query rows 8 NT w and on, and takes every token.
template <class T, int D, int NT>
R1_DEVICE void decode_prefix(const PagedDecodeParams& p, const Work<D>& work, float scale_log2) {
    constexpr int STAGES = Work<D>::STAGES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first_row = warp * 8 * NT;
    const int num_rows = work.item.num_members * work.gqa;
    QueryRows<D, NT> rows;
    start_rows<T>(rows, [&](int n) { return query_row<T>(p, work, first_row + n); });
    for (int page = 0; page < STAGES - 1; page++)
        copy_page<T>(p, work, page, 0, PAGE_TOKENS, threadIdx.x, DECODE_THREADS);
    for (int page = 0; page < work.num_pages(); page++) {
        wait_copies<STAGES - 2>();
        block_sync();  // this page has come for every warp, and every warp is done with the page before it
        copy_page<T>(p, work, page + STAGES - 1, 0, PAGE_TOKENS, threadIdx.x, DECODE_THREADS);
        if (first_row >= num_rows) continue;
#pragma unroll 1
        for (int first = 0; first < PAGE_TOKENS && first < work.tokens(page); first += BLOCK_TOKENS)
            attend<T>(rows, work.keys(page), work.values(page), first, work.tokens(page), scale_log2);
    }
    wait_copies<0>();
    finish_sums(rows);
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int row = first_row + n * 8 + lane % 4 * 2 + j;
            if (row >= num_rows) continue;
            const int64_t result = result_row(p, work, row);
            float* output = p.partial_output + result * D + lane / 4;
            const float inverse = 1.0f / rows.sum[n][j];
#pragma unroll
            for (int k = 0; k < D / 16; k++) {
                output[k * 16] = rows.output[n][k][j] * inverse;
                output[k * 16 + 8] = rows.output[n][k][j + 2] * inverse;
            }
            if (lane / 4 == 0)
                p.partial_lse[result] = rows.top[n][j] * scale_log2 + fast_log2(rows.sum[n][j]);
        }
}

// The warps' results for the same rows, by way of shared memory: [warps][rows][D], then tops and sums.
template <int D, int NT>
struct WarpResults {
    static constexpr int ROWS = 8 * NT;
    static_assert((D + 2) * DECODE_WARPS * ROWS * sizeof(float) <= decode_shared_bytes(D), "in the place of the pages");
    float* outputs;
    float* tops;
    float* sums;

    R1_DEVICE WarpResults()
        : outputs(reinterpret_cast<float*>(dynamic_shared())),
          tops(outputs + DECODE_WARPS * ROWS * D),
          sums(tops + DECODE_WARPS * ROWS) {}

    R1_DEVICE void store(const QueryRows<D, NT>& rows, int warp, int lane) {
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int row = warp * ROWS + n * 8 + lane % 4 * 2 + j;
#pragma unroll
                for (int k = 0; k < D / 16; k++) {
                    outputs[row * D + k * 16 + lane / 4] = rows.output[n][k][j];
                    outputs[row * D + k * 16 + lane / 4 + 8] = rows.output[n][k][j + 2];
                }
                if (lane / 4 == 0) {
                    tops[row] = rows.top[n][j];
                    sums[row] = rows.sum[n][j];
                }
            }
    }
};

// Suffix: every warp has the query rows first_row and on, and takes 16 tokens of every page; then their results are added
// in the order of the warps.
template <class T, int D, int NT>
R1_DEVICE void decode_suffix(const PagedDecodeParams& p, const Work<D>& work, int first_row, float scale_log2) {
    constexpr int STAGES = Work<D>::STAGES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = warp * BLOCK_TOKENS;
    QueryRows<D, NT> rows;
    start_rows<T>(rows, [&](int n) { return query_row<T>(p, work, first_row + n); });
    for (int page = 0; page < STAGES - 1; page++)
        copy_page<T>(p, work, page, first, first + BLOCK_TOKENS, lane, 32);
    for (int page = 0; page < work.num_pages(); page++) {
        wait_copies<STAGES - 2>();
        warp_sync();  // a warp reads only what it copied itself
        copy_page<T>(p, work, page + STAGES - 1, first, first + BLOCK_TOKENS, lane, 32);
        if (first < work.tokens(page))
            attend<T>(rows, work.keys(page), work.values(page), first, work.tokens(page), scale_log2);
    }
    wait_copies<0>();
    finish_sums(rows);
    block_sync();  // the pages are read: their place is free
    WarpResults<D, NT> results;
    results.store(rows, warp, lane);
    block_sync();
    const int num_rows = work.gqa - first_row < 8 * NT ? work.gqa - first_row : 8 * NT;
    for (int i = threadIdx.x; i < num_rows * D; i += DECODE_THREADS) {
        const int row = i / D, d = i % D;
        float top = -INFINITY, sum = 0, output = 0;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            const float other = results.tops[w * WarpResults<D, NT>::ROWS + row];
            top = other > top ? other : top;
        }
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            const int at = w * WarpResults<D, NT>::ROWS + row;
            const float weight = fast_exp2((results.tops[at] - top) * scale_log2);  // 0 for a warp without tokens
            sum += weight * results.sums[at];
            output += weight * results.outputs[at * D + d];
        }
        const int64_t result = result_row(p, work, first_row + row);
        p.partial_output[result * D + d] = output / sum;
        if (d == 0) p.partial_lse[result] = top * scale_log2 + fast_log2(sum);
    }
}

// Tiles of 8 query rows that a warp's registers hold.
template <int D>
constexpr int wide_tiles = D > 128 ? 1 : 2;

template <class T, int D>
R1_KERNEL(DECODE_THREADS, decode_blocks(D)) paged_decode_kernel(const PagedDecodeParams p) {
    constexpr float LOG2_E = 1.44269504088896f;
    constexpr int WIDE = wide_tiles<D>;
    const float scale_log2 = p.scale * LOG2_E;
    const int num_work = p.status[PLAN_NUM_ITEMS] * p.num_kv_heads;
    for (int number = blockIdx.x; number < num_work; number += gridDim.x) {
        const Work<D> work = work_of<D>(p, number);
        if (work.item.is_prefix) {
            decode_prefix<T, D, WIDE>(p, work, scale_log2);
        } else if (work.gqa <= 8) {
            decode_suffix<T, D, 1>(p, work, 0, scale_log2);
        } else {
            for (int first_row = 0; first_row < work.gqa; first_row += 8 * WIDE) {
                if (first_row) block_sync();
                decode_suffix<T, D, WIDE>(p, work, first_row, scale_log2);
            }
        }
        block_sync();  // shared memory belongs to the next item
    }
}

template <class T, int D>
void launch_paged_decode(const PagedDecodeParams& params, intptr_t stream) {
    static_assert(prefix_rows(D) == DECODE_WARPS * 8 * wide_tiles<D>, "decode_plan makes items of so many rows");
    const int64_t most = static_cast<int64_t>(params.max_items) * params.num_kv_heads;
    const int64_t resident = static_cast<int64_t>(num_multiprocessors("paged_decode")) * decode_blocks(D);
    const auto blocks = static_cast<unsigned>(most < resident ? most : resident);
    launch("paged_decode", paged_decode_kernel<T, D>, {blocks, 1, DECODE_THREADS, decode_shared_bytes(D)}, params,
           stream);
}

}  // namespace r1
