#include <cmath>

#include "core/fixed_point.h"
#include "cpu/per_isa/entries.h"
#include "cpu/per_isa/vectors.h"
#include "ops/sample.h"

namespace r1 {
namespace R1_ISA_NAMESPACE {
namespace {

inline Vec larger(Vec x, Vec y) { return x > y ? x : y; }

// Which lanes of a comparison are true, a bit each.
inline uint32_t lanes_of(IntVec mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(bits_as<__m512i>(mask));
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(bits_as<__m256>(mask)));
#else
    uint32_t lanes = 0;
    for (int lane = 0; lane < LANES; lane++) lanes |= (mask[lane] & 1u) << lane;
    return lanes;
#endif
}

// The first of the ascending `banned` that is not below `token`.
int first_banned(const SampleTiles& t, int token) {
    int low = 0, high = t.num_banned;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (t.banned[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct Tile {
    const float* logits;
    int size;  // a multiple of LANES: -inf follows the vocabulary's end
};

// A tile as fp32: in place where it is that, else in `buffer`.
template <class T>
Tile load_tile(const SampleTiles& t, int tile, float* buffer) {
    const int begin = tile * SAMPLE_TILE, left = t.vocab - begin, count = left < SAMPLE_TILE ? left : SAMPLE_TILE;
    const T* logits = static_cast<const T*>(t.logits) + begin;
    const int banned = t.num_banned ? first_banned(t, begin) : 0;
    const bool any_banned = banned < t.num_banned && t.banned[banned] < begin + count;
    if constexpr (sizeof(T) == sizeof(float))
        if (count % LANES == 0 && !any_banned) return {reinterpret_cast<const float*>(logits), count};
    int at = 0;
    for (; at + LANES <= count; at += LANES) store(buffer + at, load(logits + at));
    for (; at < count; at++) buffer[at] = to_float(logits[at]);
    for (; at % LANES; at++) buffer[at] = -INFINITY;
    for (int i = banned; any_banned && i < t.num_banned && t.banned[i] < begin + count; i++)
        buffer[t.banned[i] - begin] = -INFINITY;
    return {buffer, at};
}

Tile load_tile(const SampleTiles& t, int tile, float* buffer) {
    if (t.dtype == static_cast<int32_t>(DType::bf16)) return load_tile<BF16>(t, tile, buffer);
    if (t.dtype == static_cast<int32_t>(DType::fp16)) return load_tile<FP16>(t, tile, buffer);
    return load_tile<float>(t, tile, buffer);
}

inline Vec log2_weight(const SampleTiles& t, Vec logit) {
    return larger((logit - splat(t.largest)) * splat(t.scale), splat(LEAST_LOG2_WEIGHT));
}

inline Vec weight_of(Vec y) {
    const Vec shifted = y + splat(EXP2_ROUND), rest = y - (shifted - splat(EXP2_ROUND));
    Vec power = splat(EXP2_0);
    for (float c : {EXP2_1, EXP2_2, EXP2_3, EXP2_4, EXP2_5, 1.0f}) power = power * rest + splat(c);
    return bits_as<Vec>(bits_as<WordVec>(power) + (bits_as<WordVec>(shifted) << 23));
}

// Sums of numbers in [-1, 1] rounded to 2^-43, lane by lane: 1,024 of them fit 32 bits.
struct MassSum {
    WordVec high = {}, low = {};
    uint32_t count = 0;

    void add(Vec x) {
        const Vec rounded = x + splat(MASS_HIGH);
        high += bits_as<WordVec>(rounded);
        low += bits_as<WordVec>((x - (rounded - splat(MASS_HIGH))) + splat(MASS_LOW));
        count++;
    }
    // The bits of the constants are taken off here, all at once, modulo 2^32.
    int64_t lane(int number) const {
        const auto part = [this](uint32_t sum, int32_t bits) {
            return int64_t{static_cast<int32_t>(sum - count * static_cast<uint32_t>(bits))};
        };
        return part(high[number], MASS_HIGH_BITS) * (int64_t{1} << MASS_HIGH_SHIFT) + part(low[number], MASS_LOW_BITS);
    }
    int64_t sum() const {
        int64_t all = 0;
        for (int number = 0; number < LANES; number++) all += lane(number);
        return all;
    }
};

}  // namespace

bool sample_maxima(const SampleTiles& t) {
    alignas(64) float buffer[SAMPLE_TILE];
    const Vec infinity = splat(INFINITY);
    IntVec fine = infinity == infinity;
    for (int tile = 0; tile * SAMPLE_TILE < t.vocab; tile++) {
        const Tile loaded = load_tile(t, tile, buffer);
        Vec most = splat(-INFINITY);
        for (int at = 0; at < loaded.size; at += LANES) {
            const Vec logit = load(loaded.logits + at);
            fine &= logit < infinity;  // NaN is not
            most = larger(logit, most);
        }
        float largest = -INFINITY;
        for (int lane = 0; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
        t.tile_largest[tile] = largest;
    }
    return lanes_of(~fine) == 0;
}

int64_t sample_masses(const SampleTiles& t) {
    alignas(64) float buffer[SAMPLE_TILE];
    int64_t weighted_sum = 0;
    for (int tile = 0; tile * SAMPLE_TILE < t.vocab; tile++) {
        t.tile_mass[tile] = 0;
        if ((t.tile_largest[tile] - t.largest) * t.scale < MASSLESS_LOG2_WEIGHT) continue;
        const Tile loaded = load_tile(t, tile, buffer);
        MassSum mass, weighted;
        for (int at = 0; at < loaded.size; at += LANES) {
            const Vec y = log2_weight(t, load(loaded.logits + at)), weight = weight_of(y);
            mass.add(weight);
            weighted.add(weight * y);
        }
        t.tile_mass[tile] = static_cast<uint64_t>(mass.sum());
        weighted_sum += weighted.sum();
    }
    return weighted_sum;
}

int sample_candidates(const SampleTiles& t, int first_tile, int end_tile, float least, SampleCandidate* found) {
    alignas(64) float buffer[SAMPLE_TILE];
    int count = 0;
    for (int tile = first_tile; tile < end_tile; tile++) {
        if (t.tile_largest[tile] < least) continue;
        const Tile loaded = load_tile(t, tile, buffer);
        for (int at = 0; at < loaded.size; at += LANES) {
            const Vec logit = load(loaded.logits + at);
            uint32_t lanes = lanes_of(logit >= splat(least));
            if (!lanes) continue;
            MassSum mass;
            mass.add(weight_of(log2_weight(t, logit)));
            for (; lanes; lanes &= lanes - 1) {
                const int lane = __builtin_ctz(lanes), token = tile * SAMPLE_TILE + at + lane;
                if (token < t.vocab) found[count++] = {token, logit[lane], static_cast<uint64_t>(mass.lane(lane))};
            }
        }
    }
    return count;
}

}  // namespace R1_ISA_NAMESPACE
}  // namespace r1
