// One block: a batch has hundreds of rows, and its counts come without atomics or a second launch.
#pragma once
#include "core/geometry.h"
#include "cuda/primitives.cuh"
#include "ops/sequence_step.h"

namespace r1 {

constexpr int STEP_THREADS = 512;
constexpr int STEP_WARPS = STEP_THREADS / 32;

// A row's numbers: all are read at once, because a block waits for memory and little else.
struct StepRow {
    int state, generated, most, least, length, position, drawn, status;
};
R1_DEVICE StepRow load_row(const SequenceStepParams& p, int row) {
    return {p.state[row],         p.num_generated[row], p.max_tokens[row],  p.min_tokens[row],
            p.suffix_length[row], p.position[row],      p.drawn_token[row], p.drawn_status[row]};
}

// Whether the draw is good and nothing that is to be counted or addressed is out of range.
R1_DEVICE bool is_sound(const SequenceStepParams& p, const StepRow& row) {
    const int64_t room = static_cast<int64_t>(p.table_pages) * PAGE_TOKENS;
    return row.status == 0 && row.drawn >= 0 && row.generated >= 0 && row.generated < row.most &&
           row.most <= p.capacity && row.length >= 0 && row.length <= room && row.position >= -1 &&
           row.position < INT32_MAX;
}

R1_DEVICE bool ends(const SequenceStepParams& p, int token) {
    bool found = false;
    for (int i = 0; i < p.num_eos; i++) found |= p.eos[i] == token;
    return found;
}

// The slot of a suffix's token number `place`, -1 where it has no page.
R1_DEVICE int slot_of(const SequenceStepParams& p, int row, int place) {
    const int page_number = place / PAGE_TOKENS;
    if (page_number >= p.table_pages) return -1;
    const int page = p.page_table[static_cast<int64_t>(row) * p.table_pages + page_number];
    return page >= 0 && page < MAX_STEP_PAGES ? page * PAGE_TOKENS + place % PAGE_TOKENS : -1;
}

// One step of a live row; its state after it.
R1_DEVICE int step_row(const SequenceStepParams& p, int row, const StepRow& now) {
    if (!is_sound(p, now)) return FAULT;
    const int64_t at = static_cast<int64_t>(row) * p.capacity + now.generated;
    p.tokens[at] = now.drawn;
    p.logp[at] = p.drawn_logp[row];
    p.log_kept_mass[at] = p.drawn_kept_mass[row];
    p.entropy[at] = p.drawn_entropy[row];
    const int generated = now.generated + 1;
    p.num_generated[row] = generated;
    if (generated >= now.least && ends(p, now.drawn)) return ENDED_BY_TOKEN;
    if (generated == now.most) return ENDED_BY_LENGTH;
    p.token[row] = now.drawn;
    p.position[row] = now.position + 1;
    const int slot = slot_of(p, row, now.length);
    if (slot < 0) return NO_PAGE;
    p.suffix_length[row] = now.length + 1;
    p.kv_slot[row] = slot;
    return LIVE;
}

R1_KERNEL(STEP_THREADS, 1) sequence_step_kernel(const SequenceStepParams p) {
    int* of_warp = reinterpret_cast<int*>(dynamic_shared());
    const int thread = threadIdx.x;
    int count[STEP_COUNTS] = {0, 0, 0, 0};
    for (int row = thread; row < p.num_rows; row += STEP_THREADS) {
        const StepRow now = load_row(p, row);
        if (now.state != LIVE) continue;
        const int state = step_row(p, row, now);
        if (state != LIVE) {
            p.state[row] = state;
            p.suffix_length[row] = 0;
            p.kv_slot[row] = -1;
            p.group[row] = -1;
        }
        count[COUNT_LIVE] += state == LIVE;
        count[COUNT_ENDED] += state == ENDED_BY_TOKEN || state == ENDED_BY_LENGTH;
        count[COUNT_NO_PAGE] += state == NO_PAGE;
        count[COUNT_FAULTS] += state == FAULT;
    }
#pragma unroll
    for (int c = 0; c < STEP_COUNTS; c++) {
        for (int mask = 16; mask > 0; mask /= 2) count[c] += shuffle_xor(count[c], mask);
        if (thread % 32 == 0) of_warp[thread / 32 * STEP_COUNTS + c] = count[c];
    }
    block_sync();
    if (thread < STEP_COUNTS) {
        int sum = 0;
        for (int warp = 0; warp < STEP_WARPS; warp++) sum += of_warp[warp * STEP_COUNTS + thread];
        p.counts[thread] = sum;
    }
}

}  // namespace r1
