// A work item of paged_decode on one core: page by page, scores of all query rows, online softmax, weighted values.
// Every row's arithmetic is the same whatever other rows are in the item.
#include <cmath>

#include "core/geometry.h"
#include "cpu/per_isa/entries.h"
#include "cpu/per_isa/page_products.h"
#include "cpu/per_isa/vectors.h"

namespace r1 {
namespace R1_ISA_NAMESPACE {
namespace {

constexpr int MAX_ROWS = prefix_rows(64);  // query rows of an item
static_assert(MAX_ROWS >= MAX_GQA, "a suffix has the heads of one sequence");

// The running results of the item's rows.
struct Results {
    alignas(64) float output[MAX_ROWS * MAX_HEAD_DIM];  // [rows, D]
    alignas(64) float weights[MAX_ROWS * PAGE_TOKENS];  // [rows, PAGE_TOKENS] scores, then 2^(score - top)
    float top[MAX_ROWS], sum[MAX_ROWS];
};

// Online softmax of a row over a page: its scores become weights, what is beyond `num_tokens` becomes 0.
inline void weigh(Results& results, int row, int num_tokens, int D, float scale_log2) {
    float* scores = results.weights + row * PAGE_TOKENS;
    for (int t = num_tokens; t < PAGE_TOKENS; t++) scores[t] = -INFINITY;
    Vec tops = load(scores);
    for (int t = LANES; t < PAGE_TOKENS; t += LANES) {
        const Vec other = load(scores + t);
        tops = other > tops ? other : tops;
    }
    float top = results.top[row];
    for (int i = 0; i < LANES; i++) {
        const float other = tops[i] * scale_log2;
        top = other > top ? other : top;
    }
    if (top != results.top[row]) {
        const float factor = exp2(splat(results.top[row] - top))[0];
        results.sum[row] *= factor;
        for (int d = 0; d < D; d += LANES) {
            float* output = results.output + row * D + d;
            store(output, load(output) * splat(factor));
        }
        results.top[row] = top;
    }
    Vec total = {};
    for (int t = 0; t < PAGE_TOKENS; t += LANES) {
        const Vec weight = exp2(load(scores + t) * splat(scale_log2) - splat(top));
        store(scores + t, weight);
        total += weight;
    }
    results.sum[row] += sum(total);
}

template <class T>
void decode(const PagedDecodeParams& p, const DecodeItem& item, int kv_head) {
    const int D = p.head_dim, gqa = p.num_heads / p.num_kv_heads, first_head = kv_head * gqa;
    const int num_rows = item.num_members * gqa;
    const float scale_log2 = p.scale * 1.44269504088896f;
    Results results;
    PageProducts<T> products;
    int64_t result[MAX_ROWS];  // which (partial, head) a row's result is
    for (int n = 0; n < num_rows; n++) {
        const int row = item.is_prefix ? p.member[item.first_member + n / gqa] : item.segment;
        const int head = first_head + n % gqa;
        products.set_query(n, static_cast<const T*>(p.query) + row * p.query_row_stride + head * p.query_head_stride, D);
        result[n] = (int64_t{p.partial_begin[row]} + item.slot) * p.num_heads + head;
        results.top[n] = -INFINITY;
        results.sum[n] = 0;
    }
    for (int i = 0; i < num_rows * D; i++) results.output[i] = 0;

    const int32_t* table = item.is_prefix ? p.prefix_pages + int64_t{item.segment} * p.prefix_table_stride
                                          : p.suffix_pages + int64_t{item.segment} * p.suffix_table_stride;
    table += item.chunk * CHUNK_PAGES;
    const auto tile = [&](int page) { return table[page] * p.page_stride + kv_head * p.page_head_stride; };
    const int num_pages = (item.num_tokens + PAGE_TOKENS - 1) / PAGE_TOKENS;
    for (int page = 0; page < num_pages; page++) {
        const int left = item.num_tokens - page * PAGE_TOKENS, num_tokens = left < PAGE_TOKENS ? left : PAGE_TOKENS;
        const T* keys = static_cast<const T*>(p.key_pages) + tile(page);
        const T* values = static_cast<const T*>(p.value_pages) + tile(page);
        const T* next_keys = static_cast<const T*>(p.key_pages) + tile(page + 1 < num_pages ? page + 1 : page);
        products.scores(keys, values, num_tokens, num_rows, D, results.weights);
        for (int n = 0; n < num_rows; n++) weigh(results, n, num_tokens, D, scale_log2);
        products.add_values(values, next_keys, num_tokens, num_rows, D, results.weights, results.output);
    }
    for (int n = 0; n < num_rows; n++) {
        const Vec total = splat(results.sum[n]);
        for (int d = 0; d < D; d += LANES)
            store(p.partial_output + result[n] * D + d, load(results.output + n * D + d) / total);
        p.partial_lse[result[n]] = results.top[n] + __builtin_log2f(results.sum[n]);
    }
}

}  // namespace

void decode_work(const PagedDecodeParams& p, int64_t number) {
    const DecodeItem& item = p.item[number / p.num_kv_heads];
    const int kv_head = static_cast<int>(number % p.num_kv_heads);
    if (p.dtype == static_cast<int32_t>(DType::bf16)) decode<BF16>(p, item, kv_head);
    if (p.dtype == static_cast<int32_t>(DType::fp16)) decode<FP16>(p, item, kv_head);
    if (p.dtype == static_cast<int32_t>(DType::fp32)) decode<float>(p, item, kv_head);
}

}  // namespace R1_ISA_NAMESPACE
}  // namespace r1
