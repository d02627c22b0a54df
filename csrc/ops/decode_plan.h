// decode_plan: lengths and groups of a batch -> the work items of paged_decode and the places of their results.
#pragma once
#include <cstdint>

namespace r1 {

// One chunk of one segment, for the rows that read it. 32 bytes, so that two come with one cache line.
struct DecodeItem {
    int32_t segment;       // group of a prefix, row of a suffix
    int32_t chunk;         // which CHUNK_TOKENS of the segment
    int32_t num_tokens;    // of this chunk: 1..CHUNK_TOKENS
    int32_t first_member;  // prefix: into `member`; suffix: unused
    int32_t num_members;   // prefix: rows that read it; suffix: 1
    int32_t slot;          // which of a row's partial results this is
    int32_t is_prefix;
    int32_t unused;
};

// What `status` holds.
enum PlanStatus : int { PLAN_NUM_ITEMS = 0, PLAN_NUM_PARTIALS = 1, PLAN_FAULTS = 2, PLAN_STATUS_WORDS = 4 };

// Bits of status[PLAN_FAULTS]; what is out of range counts as 0 tokens or as no group, what does not fit empties the plan.
enum PlanFault : int {
    FAULT_SUFFIX_LENGTH = 1,
    FAULT_PREFIX_LENGTH = 2,
    FAULT_GROUP = 4,
    FAULT_TOO_MANY_ITEMS = 8,
    FAULT_TOO_MANY_PARTIALS = 16,
};

// S rows (sequences), G groups. A row's partial results are in the order of the tokens: those of the prefix's chunks,
// then those of its suffix's.
struct DecodePlanParams {
    const int32_t* suffix_length = nullptr;  // [S] tokens of the row's own; 0 for a row that rests
    const int32_t* group = nullptr;          // [S] the group whose prefix the row continues; -1: none
    const int32_t* prefix_length = nullptr;  // [G] tokens
    int32_t* member = nullptr;               // out [S] rows by group, ascending within each
    int32_t* partial_begin = nullptr;        // out [S + 1] a row's partial results are partial_begin[row] and on
    DecodeItem* item = nullptr;              // out [max_items] prefixes, then full chunks of suffixes, then their rests
    int32_t* status = nullptr;               // out [PLAN_STATUS_WORDS]
    int32_t num_rows = 0, num_groups = 0;
    int32_t max_suffix_tokens = 0, max_prefix_tokens = 0;  // what the page tables have room for
    int32_t max_items = 0, max_partials = 0;
    int32_t members_per_item = 0;  // prefix_members(head_dim, query heads for each KV head)
};

// Rows of Q that a block of paged_decode takes for a prefix: what its registers hold.
constexpr int prefix_rows(int head_dim) { return head_dim > 128 ? 32 : 64; }
// Sequences that share one reading of a prefix; larger groups take several items, whose second reading finds it in L2.
constexpr int prefix_members(int head_dim, int gqa) { return prefix_rows(head_dim) / gqa; }

void decode_plan_cuda(const DecodePlanParams& params, intptr_t stream);
void decode_plan_cpu(const DecodePlanParams& params, int num_threads);

}  // namespace r1
