// What csrc/cpu/per_isa works on for `sample`: the tiles of one row.
#pragma once
#include <cstdint>

namespace r1 {

struct SampleTiles {
    const void* logits = nullptr;  // of the row
    int32_t dtype = 0, vocab = 0;
    const int32_t* banned = nullptr;  // ascending; their logits count as -inf
    int32_t num_banned = 0;
    float largest = 0, scale = 0;  // a token's log2 weight is (logit - largest) * scale
    float* tile_largest = nullptr;
    uint64_t* tile_mass = nullptr;
};

struct SampleCandidate {
    int32_t token;
    float logit;
    uint64_t mass;
};

}  // namespace r1
