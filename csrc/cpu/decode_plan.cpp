// The same plan as cuda/decode_plan.cuh makes, item for item.
#include "ops/decode_plan.h"

#include <algorithm>
#include <vector>

#include "core/geometry.h"

namespace r1 {
namespace {

int chunks_of(int tokens) { return (tokens + CHUNK_TOKENS - 1) / CHUNK_TOKENS; }

// Lengths and groups as they count: what is out of range is none, and a fault.
struct Batch {
    std::vector<int> suffix, group, prefix, count, begin;
    int faults = 0;

    explicit Batch(const DecodePlanParams& p) : prefix(p.num_groups), count(p.num_groups), begin(p.num_groups) {
        for (int row = 0; row < p.num_rows; row++) {
            suffix.push_back(valid(p.suffix_length[row], 0, p.max_suffix_tokens, 0, FAULT_SUFFIX_LENGTH));
            group.push_back(valid(p.group[row], -1, p.num_groups - 1, -1, FAULT_GROUP));
            if (group[row] >= 0) count[group[row]]++;
        }
        for (int g = 0, next = 0; g < p.num_groups; next += count[g++]) {
            prefix[g] = valid(p.prefix_length[g], 0, p.max_prefix_tokens, 0, FAULT_PREFIX_LENGTH);
            begin[g] = next;
        }
    }

    int valid(int value, int low, int high, int otherwise, int fault) {
        if (value >= low && value <= high) return value;
        faults |= fault;
        return otherwise;
    }
    int prefix_chunks(int row) const { return group[row] < 0 ? 0 : chunks_of(prefix[group[row]]); }
};

void add_prefix_items(const DecodePlanParams& p, const Batch& batch, std::vector<DecodeItem>& items) {
    for (int group = 0; group < p.num_groups; group++)
        for (int chunk = 0; chunk < chunks_of(batch.prefix[group]); chunk++)
            for (int member = 0; member < batch.count[group]; member += p.members_per_item)
                items.push_back({group, chunk, std::min(batch.prefix[group] - chunk * CHUNK_TOKENS, CHUNK_TOKENS),
                                 batch.begin[group] + member,
                                 std::min(batch.count[group] - member, p.members_per_item), chunk, 1, 0});
}

// The full chunks of all suffixes, or their rests.
void add_suffix_items(const DecodePlanParams& p, const Batch& batch, bool full, std::vector<DecodeItem>& items) {
    for (int row = 0; row < p.num_rows; row++)
        for (int chunk = 0; chunk < chunks_of(batch.suffix[row]); chunk++) {
            const int tokens = std::min(batch.suffix[row] - chunk * CHUNK_TOKENS, CHUNK_TOKENS);
            if ((tokens == CHUNK_TOKENS) == full)
                items.push_back({row, chunk, tokens, 0, 1, batch.prefix_chunks(row) + chunk, 0, 0});
        }
}

}  // namespace

void decode_plan_cpu(const DecodePlanParams& p, int) {
    Batch batch(p);
    std::vector<int> next = batch.begin;
    for (int row = 0; row < p.num_rows; row++)
        if (batch.group[row] >= 0) p.member[next[batch.group[row]]++] = row;
    std::vector<DecodeItem> items;
    add_prefix_items(p, batch, items);
    add_suffix_items(p, batch, true, items);
    add_suffix_items(p, batch, false, items);
    std::vector<int> begin{0};
    for (int row = 0; row < p.num_rows; row++)
        begin.push_back(begin[row] + batch.prefix_chunks(row) + chunks_of(batch.suffix[row]));

    const int num_items = static_cast<int>(items.size()), num_partials = begin.back();
    if (num_items > p.max_items) batch.faults |= FAULT_TOO_MANY_ITEMS;
    if (num_partials > p.max_partials) batch.faults |= FAULT_TOO_MANY_PARTIALS;
    const bool fits = num_items <= p.max_items && num_partials <= p.max_partials;
    if (fits) std::copy(items.begin(), items.end(), p.item);
    for (int row = 0; row <= p.num_rows; row++) p.partial_begin[row] = fits ? begin[row] : 0;
    p.status[PLAN_NUM_ITEMS] = fits ? num_items : 0;
    p.status[PLAN_NUM_PARTIALS] = num_partials;
    p.status[PLAN_FAULTS] = batch.faults;
    p.status[3] = num_items;
}

}  // namespace r1
