// Rows of logits as a block reads them: a warp takes a tile in two parts, a lane 16 logits of each in registers.
#pragma once
#include "core/sample_row.h"
#include "cuda/primitives.cuh"

namespace r1 {

constexpr int SAMPLE_THREADS = 512;
constexpr int SAMPLE_WARPS = SAMPLE_THREADS / 32;
constexpr int PART_LOGITS = 16;  // of a lane
constexpr int PART_TOKENS = 32 * PART_LOGITS;
constexpr int TILE_PARTS = SAMPLE_TILE / PART_TOKENS;
constexpr int BINS = 1 << 11;
constexpr int MAX_CANDIDATES = 2048;
static_assert(BINS >= SAMPLE_TILE, "bins also hold a tile's masses");

struct Candidates {
    uint32_t order[MAX_CANDIDATES];
    int32_t token[MAX_CANDIDATES];
    uint64_t mass[MAX_CANDIDATES];
};

struct SampleRow {
    const void* logits;
    int32_t vocab, num_tiles;
    const int32_t* banned;
    int32_t num_banned;
    bool aligned;  // every 16 bytes of the row may be loaded at once
};

// Shared memory of a block: also what every thread knows, for registers are few.
struct SampleShared {
    uint64_t tile_mass[MAX_TILES];
    uint64_t bins[BINS];
    Candidates candidates;
    uint64_t words[32];  // of warps, or of a warp's lanes
    float largest_of_thread[SAMPLE_THREADS];
    int32_t banned_tile[MAX_TILES / 32];  // a bit for each tile that has a banned token
    SampleRow row;
    SampleSettings settings;
    SampleSums sums;
    int32_t faults, first, num_candidates;
    int32_t found;
    uint64_t rest;
};

static_assert(sizeof(SampleShared) <= 60 << 10, "two blocks' share, and what bench/cubins.py counts with");

// The lane's logits of part `part` of the row, -inf beyond its end; logit i is that of token_of(part, i).
template <class T>
R1_DEVICE int token_of(int part, int i) {
    constexpr int AT_ONCE = 16 / sizeof(T);
    const int lane = threadIdx.x % 32;
    return part * PART_TOKENS + (i / AT_ONCE * 32 + lane) * AT_ONCE + i % AT_ONCE;
}

template <class T>
R1_DEVICE void load_part(const SampleRow& row, int part, float (&logit)[PART_LOGITS]) {
    constexpr int AT_ONCE = 16 / sizeof(T);
    const T* logits = static_cast<const T*>(row.logits);
    if (row.aligned && (part + 1) * PART_TOKENS <= row.vocab) {
        alignas(16) T held[PART_LOGITS];
#pragma unroll
        for (int i = 0; i < PART_LOGITS; i += AT_ONCE) load_16(&held[i], logits + token_of<T>(part, i));
#pragma unroll
        for (int i = 0; i < PART_LOGITS; i++) logit[i] = to_float(held[i]);
        return;
    }
#pragma unroll
    for (int i = 0; i < PART_LOGITS; i++) {
        const int token = token_of<T>(part, i);
        logit[i] = token < row.vocab ? to_float(logits[token]) : -INFINITY;
    }
}

R1_DEVICE bool may_be_banned(const SampleShared& shared, int token) {
    const int tile = token / SAMPLE_TILE;
    return shared.banned_tile[tile / 32] >> (tile % 32) & 1;
}

// The same with banned tokens at -inf.
template <class T>
R1_DEVICE void load_allowed(const SampleRow& row, const SampleShared& shared, int part, float (&logit)[PART_LOGITS]) {
    load_part<T>(row, part, logit);
    if (!may_be_banned(shared, part * PART_TOKENS)) return;
    for (int number = 0; number < row.num_banned; number++) {
        const int banned = row.banned[number];
#pragma unroll
        for (int i = 0; i < PART_LOGITS; i++) logit[i] = token_of<T>(part, i) == banned ? -INFINITY : logit[i];
    }
}

template <class T>
R1_DEVICE float load_one_allowed(const SampleRow& row, const SampleShared& shared, int token) {
    if (may_be_banned(shared, token))
        for (int number = 0; number < row.num_banned; number++)
            if (row.banned[number] == token) return -INFINITY;
    return to_float(static_cast<const T*>(row.logits)[token]);
}

R1_DEVICE uint32_t word_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// As csrc/cpu/per_isa/sample.cpp computes them, operation by operation.
R1_DEVICE float log2_weight(float logit, float largest, float scale) {
    const float y = multiply_rounded(add_rounded(logit, -largest), scale);
    return y > LEAST_LOG2_WEIGHT ? y : LEAST_LOG2_WEIGHT;
}

R1_DEVICE float weight_of(float y) {
    const float shifted = add_rounded(y, EXP2_ROUND), rest = add_rounded(y, -add_rounded(shifted, -EXP2_ROUND));
    float power = add_rounded(multiply_rounded(EXP2_0, rest), EXP2_1);
    power = add_rounded(multiply_rounded(power, rest), EXP2_2);
    power = add_rounded(multiply_rounded(power, rest), EXP2_3);
    power = add_rounded(multiply_rounded(power, rest), EXP2_4);
    power = add_rounded(multiply_rounded(power, rest), EXP2_5);
    power = add_rounded(multiply_rounded(power, rest), 1.0f);
    const uint32_t bits = word_of(power) + (word_of(shifted) << 23);
    float weight;
    memcpy(&weight, &bits, sizeof weight);
    return weight;
}

// Sums of numbers in [-1, 1] rounded to 2^-43: 256 of them fit 32 bits.
struct MassSum {
    int32_t high = 0, low = 0;

    R1_DEVICE void add(float x) {
        const float rounded = add_rounded(x, MASS_HIGH), rest = add_rounded(x, -add_rounded(rounded, -MASS_HIGH));
        high += static_cast<int32_t>(word_of(rounded)) - MASS_HIGH_BITS;
        low += static_cast<int32_t>(word_of(add_rounded(rest, MASS_LOW))) - MASS_LOW_BITS;
    }
    R1_DEVICE int64_t sum() const { return static_cast<int64_t>(high) * (int64_t{1} << MASS_HIGH_SHIFT) + low; }
};

R1_DEVICE uint64_t mass_of(float weight) {
    MassSum one;
    one.add(weight);
    return static_cast<uint64_t>(one.sum());
}

R1_DEVICE uint64_t warp_sum(uint64_t x) {
    for (int mask = 16; mask; mask /= 2) x += shuffle_xor(x, mask);
    return x;
}

// Over the block, for all of its threads; `words` is free afterwards.
R1_DEVICE uint64_t block_sum(uint64_t x, uint64_t* words) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) words[threadIdx.x / 32] = x;
    block_sync();
    uint64_t sum = 0;
    for (int warp = 0; warp < SAMPLE_WARPS; warp++) sum += words[warp];
    block_sync();
    return sum;
}

R1_DEVICE float block_largest(const float* of_thread) {
    const int lane = threadIdx.x % 32;
    float largest = -INFINITY;
    for (int thread = lane; thread < SAMPLE_THREADS; thread += 32)
        largest = of_thread[thread] > largest ? of_thread[thread] : largest;
    for (int mask = 16; mask; mask /= 2) {
        const float other = shuffle_xor(largest, mask);
        largest = other > largest ? other : largest;
    }
    return largest;
}

// The first of `amounts` with more than `target` up to and including it, from the first or from the last on; leaves in
// shared.rest what of `target` those before it did not take. One warp; -1 where all are not more.
R1_DEVICE void find_crossing(SampleShared& shared, const uint64_t* amounts, int count, uint64_t target,
                             bool from_last) {
    const int lane = threadIdx.x % 32, each = (count + 31) / 32;
    const int begin = lane * each < count ? lane * each : count, end = begin + each < count ? begin + each : count;
    uint64_t own = 0;
    for (int i = 0; i < end - begin; i++) {  // each lane begins elsewhere: other banks of shared memory
        const int at = begin + (i + lane) % (end - begin);
        own += amounts[from_last ? count - 1 - at : at];
    }
    shared.words[lane] = own;
    if (lane == 0) shared.found = -1;
    warp_sync();
    uint64_t before = 0;
    for (int other = 0; other < lane; other++) before += shared.words[other];
    if (before <= target && target - before < own) {
        uint64_t rest = target - before;
        for (int at = begin; at < end; at++) {
            const uint64_t amount = amounts[from_last ? count - 1 - at : at];
            if (amount > rest) {
                shared.found = from_last ? count - 1 - at : at;
                shared.rest = rest;
                break;
            }
            rest -= amount;
        }
    }
    warp_sync();
}

}  // namespace r1
