// One block: a batch has hundreds of rows, and the launch is most of the time.
#pragma once
#include "core/geometry.h"
#include "cuda/primitives.cuh"
#include "ops/decode_plan.h"

namespace r1 {

constexpr int PLAN_THREADS = 512;
constexpr int PLAN_WARPS = PLAN_THREADS / 32;
constexpr int PLAN_COUNTERS = 4;

// Four running sums over the block's threads at once.
struct PlanCounts {
    int n[PLAN_COUNTERS];
};

// In shared memory: counters of the warps, then a count for each group, then a rank for each row.
inline size_t plan_shared_bytes(int num_rows, int num_groups) {
    return sizeof(int32_t) * (PLAN_COUNTERS * (PLAN_WARPS + 1) + 1 + static_cast<size_t>(num_groups) + num_rows);
}

// Sums of `own` over the threads before this one; `total` gets those over all.
R1_DEVICE PlanCounts exclusive_sum(PlanCounts own, int* of_warp, PlanCounts& total) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    PlanCounts before;
#pragma unroll
    for (int c = 0; c < PLAN_COUNTERS; c++) {
        int sum = own.n[c];
        for (int distance = 1; distance < 32; distance *= 2) {
            const int other = shuffle_up(sum, distance);
            if (lane >= distance) sum += other;
        }
        before.n[c] = sum - own.n[c];
        if (lane == 31) of_warp[warp * PLAN_COUNTERS + c] = sum;
    }
    block_sync();
#pragma unroll
    for (int c = 0; c < PLAN_COUNTERS; c++) {
        int sum = 0;
        for (int other = 0; other < PLAN_WARPS; other++) {
            if (other == warp) before.n[c] += sum;
            sum += of_warp[other * PLAN_COUNTERS + c];
        }
        total.n[c] = sum;
    }
    block_sync();  // of_warp is free again
    return before;
}

// What a thread takes of `count` things: a run of neighbours.
struct PlanRun {
    int begin, end;
};
R1_DEVICE PlanRun run_of(int count) {
    const int each = (count + PLAN_THREADS - 1) / PLAN_THREADS, begin = static_cast<int>(threadIdx.x) * each;
    return {begin < count ? begin : count, begin + each < count ? begin + each : count};
}

R1_DEVICE int chunks_of(int tokens) { return (tokens + CHUNK_TOKENS - 1) / CHUNK_TOKENS; }

// A length or a group as it counts, and the fault that it has.
R1_DEVICE int suffix_tokens(const DecodePlanParams& p, int row, int& faults) {
    const int tokens = p.suffix_length[row];
    if (tokens >= 0 && tokens <= p.max_suffix_tokens) return tokens;
    faults |= FAULT_SUFFIX_LENGTH;
    return 0;
}
R1_DEVICE int prefix_tokens(const DecodePlanParams& p, int group, int& faults) {
    if (group < 0) return 0;
    const int tokens = p.prefix_length[group];
    if (tokens >= 0 && tokens <= p.max_prefix_tokens) return tokens;
    faults |= FAULT_PREFIX_LENGTH;
    return 0;
}
R1_DEVICE int group_of(const DecodePlanParams& p, int row, int& faults) {
    const int group = p.group[row];
    if (group >= -1 && group < p.num_groups) return group;
    faults |= FAULT_GROUP;
    return -1;
}

// Counts each group's rows, and gives each row its rank among them, in the place of its group: one warp, so that ranks
// ascend with rows. It goes round after round, and so reads no global memory.
R1_DEVICE void rank_rows(int num_rows, int* group_count, int* rank) {
    const int lane = threadIdx.x;
    for (int first = 0; first < num_rows; first += 32) {
        const int row = first + lane, group = row < num_rows ? rank[row] : -1;
        const uint32_t peers = match_any(group);
        const int before = popcount(peers & ((1u << lane) - 1));
        const int counted = group >= 0 ? group_count[group] : 0;
        warp_sync();
        if (group >= 0) {
            rank[row] = counted + before;
            if (before == 0) group_count[group] = counted + popcount(peers);
        }
        warp_sync();
    }
}

// The items of one prefix: chunk by chunk, the sequences that read it in tiles beside each other.
R1_DEVICE void write_prefix_items(const DecodePlanParams& p, int group, int tokens, int first_member, int members,
                                  int at) {
    for (int chunk = 0; chunk < chunks_of(tokens); chunk++)
        for (int member = 0; member < members; member += p.members_per_item) {
            const int rest = tokens - chunk * CHUNK_TOKENS, left = members - member;
            p.item[at++] = {group, chunk, rest < CHUNK_TOKENS ? rest : CHUNK_TOKENS, first_member + member,
                            left < p.members_per_item ? left : p.members_per_item, chunk, 1, 0};
        }
}

// The items of one suffix: its full chunks from `at`, its rest at `rest_at`.
R1_DEVICE void write_suffix_items(const DecodePlanParams& p, int row, int tokens, int first_slot, int at, int rest_at) {
    for (int chunk = 0; chunk < chunks_of(tokens); chunk++) {
        const int left = tokens - chunk * CHUNK_TOKENS;
        const bool full = left >= CHUNK_TOKENS;
        p.item[full ? at + chunk : rest_at] = {row, chunk, full ? CHUNK_TOKENS : left, 0, 1, first_slot + chunk, 0, 0};
    }
}

R1_KERNEL(PLAN_THREADS, 1) decode_plan_kernel(const DecodePlanParams p) {
    int* of_warp = reinterpret_cast<int*>(dynamic_shared());
    int* shared_faults = of_warp + PLAN_COUNTERS * PLAN_WARPS;
    int* group_count = shared_faults + 1;
    int* rank = group_count + p.num_groups;
    const int thread = threadIdx.x;
    int faults = 0;

    for (int group = thread; group < p.num_groups; group += PLAN_THREADS) group_count[group] = 0;
    for (int row = thread; row < p.num_rows; row += PLAN_THREADS) rank[row] = group_of(p, row, faults);
    if (thread == 0) *shared_faults = 0;
    block_sync();
    if (thread < 32) rank_rows(p.num_rows, group_count, rank);
    block_sync();

    // Count: rows of groups, items of prefixes; then full chunks and rests of suffixes, partial results.
    const PlanRun groups = run_of(p.num_groups), rows = run_of(p.num_rows);
    PlanCounts of_groups = {{0, 0, 0, 0}}, of_rows = {{0, 0, 0, 0}}, all_groups, all_rows;
    for (int group = groups.begin; group < groups.end; group++) {
        const int members = group_count[group], tiles = (members + p.members_per_item - 1) / p.members_per_item;
        of_groups.n[0] += members;
        of_groups.n[1] += tiles * chunks_of(prefix_tokens(p, group, faults));
    }
    for (int row = rows.begin; row < rows.end; row++) {
        const int tokens = suffix_tokens(p, row, faults);
        of_rows.n[0] += tokens / CHUNK_TOKENS;
        of_rows.n[1] += tokens % CHUNK_TOKENS != 0;
        of_rows.n[2] += chunks_of(tokens) + chunks_of(prefix_tokens(p, group_of(p, row, faults), faults));
    }
    PlanCounts group_at = exclusive_sum(of_groups, of_warp, all_groups);
    PlanCounts row_at = exclusive_sum(of_rows, of_warp, all_rows);

    const int num_items = all_groups.n[1] + all_rows.n[0] + all_rows.n[1], num_partials = all_rows.n[2];
    if (num_items > p.max_items) faults |= FAULT_TOO_MANY_ITEMS;
    if (num_partials > p.max_partials) faults |= FAULT_TOO_MANY_PARTIALS;
    if (faults) atomic_or(shared_faults, faults);  // read after the next barrier
    const bool fits = num_items <= p.max_items && num_partials <= p.max_partials;

    for (int group = groups.begin; group < groups.end; group++) {
        const int members = group_count[group], tokens = prefix_tokens(p, group, faults);
        const int tiles = (members + p.members_per_item - 1) / p.members_per_item;
        if (fits) write_prefix_items(p, group, tokens, group_at.n[0], members, group_at.n[1]);
        group_count[group] = group_at.n[0];  // from here on where its rows begin
        group_at.n[0] += members;
        group_at.n[1] += tiles * chunks_of(tokens);
    }
    block_sync();
    const int first_full = all_groups.n[1], first_rest = first_full + all_rows.n[0];
    for (int row = rows.begin; row < rows.end; row++) {
        const int tokens = suffix_tokens(p, row, faults), group = group_of(p, row, faults);
        const int slot = chunks_of(prefix_tokens(p, group, faults));
        if (group >= 0) p.member[group_count[group] + rank[row]] = row;
        if (fits) write_suffix_items(p, row, tokens, slot, first_full + row_at.n[0], first_rest + row_at.n[1]);
        p.partial_begin[row] = fits ? row_at.n[2] : 0;
        row_at.n[0] += tokens / CHUNK_TOKENS;
        row_at.n[1] += tokens % CHUNK_TOKENS != 0;
        row_at.n[2] += chunks_of(tokens) + slot;
    }
    if (thread == 0) {
        p.partial_begin[p.num_rows] = fits ? num_partials : 0;
        p.status[PLAN_NUM_ITEMS] = fits ? num_items : 0;
        p.status[PLAN_NUM_PARTIALS] = num_partials;
        p.status[PLAN_FAULTS] = *shared_faults;
        p.status[3] = num_items;
    }
}

}  // namespace r1
