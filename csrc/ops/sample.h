// sample: one token for each row of logits, with its log-probability, the mass that was kept, and the entropy.
#pragma once
#include <cstdint>

namespace r1 {

// What `status` of a row holds. A row with a fault has token -1 and NaN numbers.
enum SampleStatus : int32_t {
    SAMPLE_OK = 0,
    SAMPLE_BAD_LOGIT = 1,    // NaN or +inf
    SAMPLE_NO_TOKEN = 2,     // every token is -inf or banned
    SAMPLE_BAD_SETTING = 4,  // a setting or a banned token out of range; on a CPU this raises instead
};

// R rows, V vocab, B banned tokens.
struct SampleParams {
    const void* logits = nullptr;           // [R, V]
    const float* temperature = nullptr;     // [R] 0: the largest logit; numbers are then those at temperature 1
    const int32_t* top_k = nullptr;         // [R] 0: off
    const float* top_p = nullptr;           // [R] in (0, 1]
    const float* min_p = nullptr;           // [R] in [0, 1]
    const int32_t* key = nullptr;           // [R, 2] Philox's two key words
    const int32_t* sample_index = nullptr;  // [R] Philox's second counter word
    const int32_t* position = nullptr;      // [R] Philox's first counter word
    const int32_t* banned = nullptr;        // [R, B] tokens that may not be drawn, -1: none
    int32_t* token = nullptr;               // out [R]
    float* logp = nullptr;                  // out [R] of softmax(logits / temperature) over the whole vocabulary
    float* log_kept_mass = nullptr;         // out [R]
    float* entropy = nullptr;               // out [R] nats
    int32_t* status = nullptr;              // out [R]
    int64_t row_stride = 0;                 // elements
    int32_t num_rows = 0, vocab = 0, num_banned = 0, dtype = 0;
};

constexpr int MAX_VOCAB = 1 << 20;  // what 63 bits of mass have room for
constexpr int SAMPLE_TILE = 1024;   // tokens whose mass is kept as one number
constexpr int MAX_TILES = MAX_VOCAB / SAMPLE_TILE;

void sample_cuda(const SampleParams& params, intptr_t stream);
void sample_cpu(const SampleParams& params, int num_threads);

}  // namespace r1
