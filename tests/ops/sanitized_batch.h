// A cache and a ragged batch for sanitized.cpp: the CPU twins of attention, append and copy on memory without a spare byte.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/geometry.h"
#include "cpu/convert.h"
#include "ops/attention_merge.h"
#include "ops/decode_plan.h"
#include "ops/kv_append.h"
#include "ops/kv_copy.h"
#include "ops/paged_decode.h"

using namespace r1;

namespace {

#define EXPECT(condition)                                                                   \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            std::fprintf(stderr, "%s, line %d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::exit(1);                                                                   \
        }                                                                                   \
    } while (false)

template <class Error, class Call>
void expect_throw(Call&& call) {
    bool thrown = false;
    try {
        call();
    } catch (const Error&) {
        thrown = true;
    }
    EXPECT(thrown);
}

// A cache of T elements, and a ragged batch of four rows in two groups on its shuffled pages. Exactly as large as it must
// be: one number too far is another's memory.
template <class T>
struct Batch {
    static constexpr int ROWS = 4, GROUPS = 2, HEADS = 6, KV_HEADS = 2, PAGES = 64;
    int D;
    std::mt19937 random{1};
    std::vector<T> key_pages, value_pages, query;
    std::vector<int32_t> suffix{700, 0, 65, 512}, group{0, 0, 1, -1}, prefix{130, 600};
    std::vector<int32_t> suffix_pages, prefix_pages;
    static constexpr int SUFFIX_TABLE = 11, PREFIX_TABLE = 10, MAX_PARTIALS = 32;

    explicit Batch(int head_dim) : D(head_dim) {
        key_pages = numbers(int64_t{PAGES} * KV_HEADS * PAGE_TOKENS * D);
        value_pages = numbers(int64_t{PAGES} * KV_HEADS * PAGE_TOKENS * D);
        query = numbers(int64_t{ROWS} * HEADS * D);
        for (int entry = 0; entry < ROWS * SUFFIX_TABLE; entry++) suffix_pages.push_back(entry * 29 % PAGES);
        for (int entry = 0; entry < GROUPS * PREFIX_TABLE; entry++) prefix_pages.push_back(entry * 31 % PAGES);
    }

    std::vector<T> numbers(int64_t count) {
        std::vector<T> result(count);
        for (T& number : result) number = from_float<T>(static_cast<float>(random() % 2048) / 512 - 2);
        return result;
    }

    std::vector<float> attend(DType dtype, int num_threads) {
        std::vector<int32_t> member(ROWS), begin(ROWS + 1), status(PLAN_STATUS_WORDS);
        std::vector<DecodeItem> items(MAX_PARTIALS);
        std::vector<float> partial(int64_t{MAX_PARTIALS} * HEADS * D), partial_lse(MAX_PARTIALS * HEADS);
        DecodePlanParams plan;
        plan.suffix_length = suffix.data(), plan.group = group.data(), plan.prefix_length = prefix.data();
        plan.member = member.data(), plan.partial_begin = begin.data(), plan.item = items.data();
        plan.status = status.data(), plan.num_rows = ROWS, plan.num_groups = GROUPS;
        plan.max_suffix_tokens = SUFFIX_TABLE * PAGE_TOKENS, plan.max_prefix_tokens = PREFIX_TABLE * PAGE_TOKENS;
        plan.max_items = plan.max_partials = MAX_PARTIALS, plan.members_per_item = prefix_members(D, HEADS / KV_HEADS);
        decode_plan_cpu(plan, num_threads);
        EXPECT(status[PLAN_FAULTS] == 0);
        PagedDecodeParams decode;
        decode.query = query.data(), decode.key_pages = key_pages.data(), decode.value_pages = value_pages.data();
        decode.suffix_pages = suffix_pages.data(), decode.prefix_pages = prefix_pages.data();
        decode.item = items.data(), decode.status = status.data(), decode.member = member.data();
        decode.partial_begin = begin.data(), decode.partial_output = partial.data();
        decode.partial_lse = partial_lse.data(), decode.query_row_stride = HEADS * D, decode.query_head_stride = D;
        decode.page_head_stride = PAGE_TOKENS * D, decode.page_stride = KV_HEADS * PAGE_TOKENS * D;
        decode.suffix_table_stride = SUFFIX_TABLE, decode.prefix_table_stride = PREFIX_TABLE;
        decode.num_heads = HEADS, decode.num_kv_heads = KV_HEADS, decode.head_dim = D, decode.num_pages = PAGES;
        decode.max_items = MAX_PARTIALS, decode.scale = 0.1f, decode.dtype = static_cast<int32_t>(dtype);
        paged_decode_cpu(decode, num_threads);
        suffix_pages[0] += 1000;
        expect_throw<std::invalid_argument>([&] { paged_decode_cpu(decode, num_threads); });
        suffix_pages[0] -= 1000;
        std::vector<float> output(int64_t{ROWS} * HEADS * D), lse(ROWS * HEADS);
        AttentionMergeParams merge;
        merge.partial_output = partial.data(), merge.partial_lse = partial_lse.data();
        merge.partial_begin = begin.data(), merge.output = output.data(), merge.lse = lse.data();
        merge.output_row_stride = HEADS * D, merge.output_head_stride = D, merge.num_rows = ROWS;
        merge.num_heads = HEADS, merge.head_dim = D, merge.dtype = static_cast<int32_t>(DType::fp32);
        attention_merge_cpu(merge, num_threads);
        output.insert(output.end(), lse.begin(), lse.end());
        return output;
    }

    void append(DType dtype, int num_threads) {
        constexpr int TOKENS = 130, POSITIONS = 9;
        const std::vector<T> fused = numbers(int64_t{TOKENS} * (HEADS + 2 * KV_HEADS) * D), bias = numbers(HEADS * D);
        const std::vector<float> angles(POSITIONS * D / 2, 0.6f);
        std::vector<T> out(int64_t{TOKENS} * HEADS * D);
        std::vector<int32_t> slots, positions;
        for (int token = 0; token < TOKENS; token++) {
            slots.push_back(token % 9 == 8 ? -1 : token * 31);
            positions.push_back(token % POSITIONS);
        }
        KvAppendParams p;
        p.query = fused.data(), p.key = fused.data() + HEADS * D, p.value = fused.data() + (HEADS + KV_HEADS) * D;
        p.query_out = out.data(), p.key_pages = key_pages.data(), p.value_pages = value_pages.data();
        p.slot = slots.data(), p.position = positions.data(), p.query_bias = p.key_bias = p.value_bias = bias.data();
        p.query_norm = p.key_norm = bias.data(), p.cosine = p.sine = angles.data();
        p.query_token_stride = p.key_token_stride = p.value_token_stride = (HEADS + 2 * KV_HEADS) * D;
        p.query_head_stride = p.key_head_stride = p.value_head_stride = p.query_out_head_stride = D;
        p.query_out_token_stride = HEADS * D, p.page_head_stride = PAGE_TOKENS * D;
        p.page_stride = KV_HEADS * PAGE_TOKENS * D, p.num_tokens = TOKENS, p.num_heads = HEADS;
        p.num_kv_heads = KV_HEADS, p.head_dim = D, p.num_pages = PAGES, p.num_positions = POSITIONS;
        p.norm_eps = 1e-6f, p.dtype = static_cast<int32_t>(dtype);
        kv_append_cpu(p, num_threads);
        slots[3] = PAGES * PAGE_TOKENS;
        expect_throw<std::invalid_argument>([&] { kv_append_cpu(p, num_threads); });
    }

    void copy(int num_threads) {
        std::vector<int32_t> source, destination;
        for (int page = 0; page < PAGES / 2; page++) source.push_back(page), destination.push_back(PAGES - 1 - page);
        KvCopyParams p;
        p.source_key = p.destination_key = key_pages.data(), p.source_value = p.destination_value = value_pages.data();
        p.source_page = source.data(), p.destination_page = destination.data();
        p.tile_bytes = p.source_head_stride = p.destination_head_stride = PAGE_TOKENS * D * sizeof(T);
        p.source_page_stride = p.destination_page_stride = KV_HEADS * p.tile_bytes;
        p.num_pairs = PAGES / 2, p.num_layers = 1, p.num_kv_heads = KV_HEADS;
        p.num_source_pages = p.num_destination_pages = PAGES;
        kv_copy_cpu(p, num_threads);
        const int64_t page_numbers = p.source_page_stride / sizeof(T);
        EXPECT(std::memcmp(key_pages.data(), &key_pages[(PAGES - 1) * page_numbers], p.source_page_stride) == 0);
        destination[1] = 0;
        expect_throw<std::invalid_argument>([&] { kv_copy_cpu(p, num_threads); });
    }
};

}  // namespace
