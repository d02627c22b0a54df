// The same step as cuda/sequence_step.cuh makes. A row takes nanoseconds: threads would cost more than they save.
#include "ops/sequence_step.h"

#include <algorithm>

#include "core/geometry.h"

namespace r1 {
namespace {

constexpr int32_t NO_SLOT = -1;

// One live row of the batch.
struct Row {
    const SequenceStepParams& p;
    int32_t row;

    bool is_sound() const {
        const int64_t room = int64_t{p.table_pages} * PAGE_TOKENS;
        const int32_t most = p.max_tokens[row], generated = p.num_generated[row];
        return p.drawn_status[row] == 0 && p.drawn_token[row] >= 0 && 0 <= generated && generated < most &&
               most <= p.capacity && 0 <= p.suffix_length[row] && p.suffix_length[row] <= room &&
               -1 <= p.position[row] && p.position[row] < INT32_MAX;
    }

    void append() const {
        const int64_t at = int64_t{row} * p.capacity + p.num_generated[row]++;
        p.tokens[at] = p.drawn_token[row];
        p.logp[at] = p.drawn_logp[row];
        p.log_kept_mass[at] = p.drawn_kept_mass[row];
        p.entropy[at] = p.drawn_entropy[row];
    }

    bool has_ended_by_token() const {
        return p.num_generated[row] >= p.min_tokens[row] &&
               std::find(p.eos, p.eos + p.num_eos, p.drawn_token[row]) != p.eos + p.num_eos;
    }

    int32_t slot_of(int32_t place) const {
        if (place / PAGE_TOKENS >= p.table_pages) return NO_SLOT;
        const int32_t page = p.page_table[int64_t{row} * p.table_pages + place / PAGE_TOKENS];
        return page < 0 || page >= MAX_STEP_PAGES ? NO_SLOT : page * PAGE_TOKENS + place % PAGE_TOKENS;
    }

    RowState step() const {
        if (!is_sound()) return FAULT;
        append();
        if (has_ended_by_token()) return ENDED_BY_TOKEN;
        if (p.num_generated[row] == p.max_tokens[row]) return ENDED_BY_LENGTH;
        p.token[row] = p.drawn_token[row];
        p.position[row]++;
        p.kv_slot[row] = slot_of(p.suffix_length[row]++);
        return p.kv_slot[row] == NO_SLOT ? NO_PAGE : LIVE;
    }

    void rest() const {
        p.suffix_length[row] = 0;
        p.kv_slot[row] = NO_SLOT;
        p.group[row] = -1;
    }
};

StepCount count_of(RowState state) {
    switch (state) {
        case LIVE: return COUNT_LIVE;
        case NO_PAGE: return COUNT_NO_PAGE;
        case FAULT: return COUNT_FAULTS;
        default: return COUNT_ENDED;
    }
}

}  // namespace

void sequence_step_cpu(const SequenceStepParams& p, int) {
    std::fill_n(p.counts, STEP_COUNTS, 0);
    for (int32_t row = 0; row < p.num_rows; row++) {
        if (p.state[row] != LIVE) continue;
        const Row live{p, row};
        const RowState state = live.step();
        p.state[row] = state;
        if (state != LIVE) live.rest();
        p.counts[count_of(state)]++;
    }
}

}  // namespace r1
