// sequence_step: what was drawn for each row of the batch -> its outputs, and the inputs of the next decode step.
#pragma once
#include <cstdint>

namespace r1 {

// What `state` holds. Only live rows are looked at, any other value rests.
enum RowState : int { RESTING = 0, LIVE = 1, ENDED_BY_TOKEN = 2, ENDED_BY_LENGTH = 3, FAULT = 4, NO_PAGE = 5 };

// What `counts` holds, of this step.
enum StepCount : int { COUNT_LIVE = 0, COUNT_ENDED = 1, COUNT_NO_PAGE = 2, COUNT_FAULTS = 3, STEP_COUNTS = 4 };

// Slots are int32, so that later pages cannot be named.
constexpr int32_t MAX_STEP_PAGES = 1 << 25;

// S rows (sequences), E tokens that end one, P pages of a table's row, N tokens of a row's outputs.
struct SequenceStepParams {
    const int32_t* drawn_token = nullptr;   // [S] by `sample`, as are the next four
    const float* drawn_logp = nullptr;      // [S]
    const float* drawn_kept_mass = nullptr; // [S] its log
    const float* drawn_entropy = nullptr;   // [S]
    const int32_t* drawn_status = nullptr;  // [S] 0: the draw is good
    const int32_t* eos = nullptr;           // [E]
    const int32_t* page_table = nullptr;    // [S, P] of the suffixes; -1: no page
    const int32_t* max_tokens = nullptr;    // [S] at most N
    const int32_t* min_tokens = nullptr;    // [S] before them `eos` does not end the row
    int32_t* state = nullptr;               // in, out [S], and so are the next six
    int32_t* num_generated = nullptr;       // [S]
    int32_t* token = nullptr;               // [S] goes through the model next
    int32_t* position = nullptr;            // [S] of it in the sequence
    int32_t* suffix_length = nullptr;       // [S] tokens of the row's own with it; 0 where the row rests
    int32_t* kv_slot = nullptr;             // [S] where kv_append writes it; -1 where the row rests
    int32_t* group = nullptr;               // [S] -1 where the row rests
    int32_t* tokens = nullptr;              // out [S, N], and so are the next three: what was drawn so far
    float* logp = nullptr;                  // [S, N]
    float* log_kept_mass = nullptr;         // [S, N]
    float* entropy = nullptr;               // [S, N]
    int32_t* counts = nullptr;              // out [STEP_COUNTS]
    int32_t num_rows = 0, num_eos = 0, table_pages = 0, capacity = 0;  // S, E, P, N
};

void sequence_step_cuda(const SequenceStepParams& params, intptr_t stream);
void sequence_step_cpu(const SequenceStepParams& params, int num_threads);

}  // namespace r1
