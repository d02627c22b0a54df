// A block for each row. It reads the row twice, for the largest logit and for the masses of tiles; cuts need it once
// more for the candidates that they choose among, where those fit shared memory, and the draw reads one tile. Sums are
// of integers: no order of warps or atomics shows in them (core/fixed_point.h).
#pragma once
#include "cuda/sample_tiles.cuh"

namespace r1 {

struct SampleCut {
    uint32_t floor;       // least order of a logit
    uint64_t least_mass;  // by min-p
};

// Settings and banned tokens into shared memory, with what is wrong with them.
template <class T>
R1_DEVICE void begin_row(const SampleParams& p, int64_t number, SampleShared& shared) {
    const int thread = threadIdx.x;
    SampleRow& row = shared.row;
    if (thread < MAX_TILES / 32) shared.banned_tile[thread] = 0;
    if (thread == 0) {
        row.logits = static_cast<const T*>(p.logits) + number * p.row_stride;
        row.vocab = p.vocab, row.num_tiles = (p.vocab + SAMPLE_TILE - 1) / SAMPLE_TILE;
        row.banned = p.banned + number * p.num_banned, row.num_banned = p.num_banned;
        row.aligned = reinterpret_cast<uintptr_t>(row.logits) % 16 == 0;
        shared.settings = settings_of(p, number);
        shared.faults = shared.settings.valid ? 0 : SAMPLE_BAD_SETTING;
        shared.first = p.vocab;
        shared.num_candidates = 0;
    }
    block_sync();
    for (int i = thread; i < row.num_banned; i += SAMPLE_THREADS) {
        const int token = row.banned[i], tile = token / SAMPLE_TILE;
        if (token < -1 || token >= row.vocab) atomic_or(&shared.faults, SAMPLE_BAD_SETTING);
        if (token >= 0 && token < row.vocab)
            atomic_or(&shared.banned_tile[tile / 32], static_cast<int>(1u << tile % 32));
    }
    block_sync();
}

// The largest logit of the row; each thread's own stays in shared.largest_of_thread.
template <class T, bool ALLOWED>
R1_DEVICE float find_largest(const SampleRow& row, SampleShared& shared) {
    float largest = -INFINITY;
    bool fine = true;
    for (int part = threadIdx.x / 32; part < row.num_tiles * TILE_PARTS; part += SAMPLE_WARPS) {
        float logit[PART_LOGITS];
        if (ALLOWED)
            load_allowed<T>(row, shared, part, logit);
        else
            load_part<T>(row, part, logit);
#pragma unroll
        for (int i = 0; i < PART_LOGITS; i++) {
            fine &= logit[i] < INFINITY;  // NaN is not
            largest = logit[i] > largest ? logit[i] : largest;
        }
    }
    if (!ALLOWED && !fine) atomic_or(&shared.faults, SAMPLE_BAD_LOGIT);
    shared.largest_of_thread[threadIdx.x] = largest;
    block_sync();
    return block_largest(shared.largest_of_thread);
}

// Masses of tiles over the whole vocabulary; the sum of weight times log2 weight.
template <class T>
R1_DEVICE int64_t weigh_row(const SampleRow& row, SampleShared& shared, float largest) {
    const float scale = shared.settings.scale;
    int64_t weighted_sum = 0;
    for (int tile = threadIdx.x / 32; tile < row.num_tiles; tile += SAMPLE_WARPS) {
        MassSum mass, weighted;
        for (int part = 0; part < TILE_PARTS; part++) {
            float logit[PART_LOGITS];
            load_part<T>(row, tile * TILE_PARTS + part, logit);
#pragma unroll
            for (int i = 0; i < PART_LOGITS; i++) {
                const float y = log2_weight(logit[i], largest, scale), weight = weight_of(y);
                mass.add(weight);
                weighted.add(multiply_rounded(weight, y));
            }
        }
        const uint64_t all = warp_sum(static_cast<uint64_t>(mass.sum()));
        if (threadIdx.x % 32 == 0) shared.tile_mass[tile] = all;
        weighted_sum += weighted.sum();
    }
    return static_cast<int64_t>(block_sum(static_cast<uint64_t>(weighted_sum), shared.words));
}

R1_DEVICE uint64_t kept_mass(float logit, float y, const SampleCut& cut) {
    const uint64_t mass = mass_of(weight_of(y));
    return order_of(logit) >= cut.floor && mass >= cut.least_mass ? mass : 0;
}

// Masses of tiles of what the cut keeps.
template <class T>
R1_DEVICE void weigh_kept(const SampleRow& row, SampleShared& shared, float largest, const SampleCut& cut) {
    const float scale = shared.settings.scale;
    for (int tile = threadIdx.x / 32; tile < row.num_tiles; tile += SAMPLE_WARPS) {
        uint64_t mass = 0;
        for (int part = 0; part < TILE_PARTS; part++) {
            float logit[PART_LOGITS];
            load_allowed<T>(row, shared, tile * TILE_PARTS + part, logit);
#pragma unroll
            for (int i = 0; i < PART_LOGITS; i++)
                mass += kept_mass(logit[i], log2_weight(logit[i], largest, scale), cut);
        }
        mass = warp_sum(mass);
        if (threadIdx.x % 32 == 0) shared.tile_mass[tile] = mass;
    }
    block_sync();
}

R1_DEVICE uint64_t sum_tiles(const SampleRow& row, SampleShared& shared) {
    uint64_t mass = 0;
    for (int tile = threadIdx.x; tile < row.num_tiles; tile += SAMPLE_THREADS) mass += shared.tile_mass[tile];
    return block_sum(mass, shared.words);
}

// A logit that at least `count` of the row reach: the count-th largest of the threads' own.
R1_DEVICE float reached_by(SampleShared& shared, int count) {
    if (count > SAMPLE_THREADS) return -INFINITY;
    const float own = shared.largest_of_thread[threadIdx.x];
    int above = 0;
    for (int thread = 0; thread < SAMPLE_THREADS; thread++) above += shared.largest_of_thread[thread] > own;
    block_sync();
    shared.largest_of_thread[threadIdx.x] = above < count ? -own : -INFINITY;
    block_sync();
    return -block_largest(shared.largest_of_thread);
}

// A log2 weight such that all tokens below it have less mass together than top-p leaves out.
R1_DEVICE float left_out_below(const SampleSettings& settings, uint64_t mass, int vocab) {
    uint64_t each = (mass - nucleus_of(settings, mass)) / static_cast<uint64_t>(vocab);
    if (each < 4) return LEAST_LOG2_WEIGHT;
    int exponent = 0;
    for (; each > 1; each /= 2) exponent++;
    return static_cast<float>(exponent - MASS_BITS - 1);
}

// Lists the tokens that cuts choose among; where they are too many, num_candidates says so and the row is read instead.
template <class T>
R1_DEVICE void list_candidates(const SampleRow& row, SampleShared& shared, float largest, float least_logit,
                               float least) {
    const float scale = shared.settings.scale;
    for (int part = threadIdx.x / 32; part < row.num_tiles * TILE_PARTS; part += SAMPLE_WARPS) {
        float logit[PART_LOGITS];
        load_allowed<T>(row, shared, part, logit);
#pragma unroll
        for (int i = 0; i < PART_LOGITS; i++) {
            const float y = log2_weight(logit[i], largest, scale);
            if (logit[i] < least_logit || y < least || token_of<T>(part, i) >= row.vocab) continue;
            const int at = atomic_add(&shared.num_candidates, 1);
            if (at >= MAX_CANDIDATES) continue;
            shared.candidates.order[at] = order_of(logit[i]);
            shared.candidates.token[at] = token_of<T>(part, i);
            shared.candidates.mass[at] = mass_of(weight_of(y));
        }
    }
    block_sync();
}

struct Candidate {
    uint32_t order;
    int32_t token;
    uint64_t mass;
};

// visit(candidate) for each of the list, or for all tokens of the row.
template <class T, class Visit>
R1_DEVICE void visit_candidates(const SampleRow& row, SampleShared& shared, float largest, const Visit& visit) {
    if (shared.num_candidates <= MAX_CANDIDATES) {
        for (int i = threadIdx.x; i < shared.num_candidates; i += SAMPLE_THREADS)
            visit(Candidate{shared.candidates.order[i], shared.candidates.token[i], shared.candidates.mass[i]});
        return;
    }
    for (int token = threadIdx.x; token < row.vocab; token += SAMPLE_THREADS) {
        const float logit = load_one_allowed<T>(row, shared, token);
        const float y = log2_weight(logit, largest, shared.settings.scale);
        visit(Candidate{order_of(logit), token, mass_of(weight_of(y))});
    }
}

// The largest order of a logit such that the candidates of at least that order amount to `target`, each to its mass or
// to 1: digit by digit. Integers are added, so that it does not matter who comes first.
template <class T>
R1_DEVICE uint32_t radix_floor(const SampleRow& row, SampleShared& shared, float largest, uint64_t target,
                               bool by_mass) {
    uint32_t prefix = 0, known = 0;
#pragma unroll 1
    for (int level = 0; level < 3; level++) {
        const int shift = level == 0 ? 21 : level == 1 ? 10 : 0, bins = level == 2 ? 1 << 10 : 1 << 11;
        for (int bin = threadIdx.x; bin < bins; bin += SAMPLE_THREADS) shared.bins[bin] = 0;
        block_sync();
        visit_candidates<T>(row, shared, largest, [&](const Candidate& candidate) {
            const uint64_t amount = by_mass ? candidate.mass : 1;
            if ((candidate.order & known) == prefix && amount)
                atomic_add(&shared.bins[candidate.order >> shift & static_cast<uint32_t>(bins - 1)], amount);
        });
        block_sync();
        if (threadIdx.x < 32) find_crossing(shared, shared.bins, bins, target - 1, true);
        block_sync();
        if (shared.found < 0) return 0;
        prefix |= static_cast<uint32_t>(shared.found) << shift;
        known |= static_cast<uint32_t>(bins - 1) << shift;
        target = shared.rest + 1;
        block_sync();
    }
    return prefix;
}

// Mass of the candidates from `floor` on.
template <class T>
R1_DEVICE uint64_t candidate_mass(const SampleRow& row, SampleShared& shared, float largest, uint32_t floor) {
    uint64_t mass = 0;
    visit_candidates<T>(row, shared, largest, [&](const Candidate& candidate) {
        if (candidate.order >= floor) mass += candidate.mass;
    });
    return block_sum(mass, shared.words);
}

// Finds what top-k and top-p keep, and leaves the kept masses in shared.tile_mass. `mass`: that of the allowed tokens.
template <class T>
R1_DEVICE SampleCut find_cut(const SampleRow& row, SampleShared& shared, float largest, uint64_t mass) {
    const SampleSettings settings = shared.settings;
    SampleCut cut{0, settings.least_mass};
    const bool by_k = settings.top_k > 0, by_p = settings.top_p < 1.0f;
    if (!by_k && !by_p) {
        weigh_kept<T>(row, shared, largest, cut);
        return cut;
    }
    const float least_logit = by_k ? reached_by(shared, settings.top_k) : -INFINITY;
    const float least = by_k ? LEAST_LOG2_WEIGHT : left_out_below(settings, mass, row.vocab);
    list_candidates<T>(row, shared, largest, least_logit, least);
#pragma unroll 1
    for (int by_mass = by_k ? 0 : 1; by_mass <= (by_p ? 1 : 0); by_mass++) {
        if (by_mass && by_k) mass = candidate_mass<T>(row, shared, largest, cut.floor);  // what top-k keeps
        const uint64_t target = by_mass ? nucleus_of(settings, mass) : static_cast<uint64_t>(settings.top_k);
        const uint32_t floor = radix_floor<T>(row, shared, largest, target, by_mass);
        cut.floor = floor > cut.floor ? floor : cut.floor;
    }
    for (int tile = threadIdx.x; tile < row.num_tiles; tile += SAMPLE_THREADS) shared.tile_mass[tile] = 0;
    block_sync();
    visit_candidates<T>(row, shared, largest, [&](const Candidate& candidate) {
        if (candidate.order >= cut.floor && candidate.mass >= cut.least_mass)
            atomic_add(&shared.tile_mass[candidate.token / SAMPLE_TILE], candidate.mass);
    });
    block_sync();
    return cut;
}

// By the inverse of the cumulative mass in vocabulary order. One warp; the token is left in shared.found.
template <class T>
R1_DEVICE void draw_token(const SampleRow& row, SampleShared& shared, float largest, const SampleCut& cut,
                          uint64_t kept) {
    find_crossing(shared, shared.tile_mass, row.num_tiles, target_of(shared.settings, kept), false);
    const int tile = shared.found;
    for (int at = threadIdx.x; at < SAMPLE_TILE; at += 32) {
        const int token = tile * SAMPLE_TILE + at;
        const float logit = token < row.vocab ? load_one_allowed<T>(row, shared, token) : -INFINITY;
        shared.bins[at] = kept_mass(logit, log2_weight(logit, largest, shared.settings.scale), cut);
    }
    const uint64_t rest = shared.rest;
    warp_sync();
    find_crossing(shared, shared.bins, SAMPLE_TILE, rest, false);
    if (threadIdx.x == 0) shared.first = tile * SAMPLE_TILE + shared.found;
}

// The first token with the largest logit that is allowed.
template <class T>
R1_DEVICE void find_first(const SampleRow& row, SampleShared& shared, float largest) {
    for (int part = threadIdx.x / 32; part < row.num_tiles * TILE_PARTS; part += SAMPLE_WARPS) {
        float logit[PART_LOGITS];
        load_allowed<T>(row, shared, part, logit);
#pragma unroll
        for (int i = 0; i < PART_LOGITS; i++)
            if (logit[i] == largest) atomic_min(&shared.first, token_of<T>(part, i));
    }
}

template <class T>
R1_KERNEL(SAMPLE_THREADS, 2) sample_kernel(const SampleParams p) {
    SampleShared& shared = *reinterpret_cast<SampleShared*>(dynamic_shared());
    const int64_t number = blockIdx.x;
    const SampleRow& row = shared.row;
    SampleSums& sums = shared.sums;  // thread 0 writes and reads it
    const bool first = threadIdx.x == 0;
    begin_row<T>(p, number, shared);

    float largest = find_largest<T, false>(row, shared);
    if (first) sums.largest = largest;
    const int64_t weighted = weigh_row<T>(row, shared, largest);
    uint64_t kept = sum_tiles(row, shared);
    if (first) sums.weighted = weighted, sums.total = kept;
    if (row.num_banned) largest = find_largest<T, true>(row, shared);
    const int faults = shared.faults;
    if (faults || largest == -INFINITY) {  // the same for all threads
        const int status = faults & SAMPLE_BAD_SETTING ? SAMPLE_BAD_SETTING : SAMPLE_BAD_LOGIT;
        if (first) write_fault(p, number, faults ? status : SAMPLE_NO_TOKEN);
        return;
    }
    SampleCut cut{0, 0};
    if (row.num_banned) {
        weigh_kept<T>(row, shared, largest, cut);
        kept = sum_tiles(row, shared);
    }
    if (shared.settings.cuts()) {
        cut = find_cut<T>(row, shared, largest, kept);
        kept = sum_tiles(row, shared);
    }
    if (shared.settings.greedy)
        find_first<T>(row, shared, largest);
    else if (threadIdx.x < 32)
        draw_token<T>(row, shared, largest, cut, kept);
    block_sync();
    if (first) {
        sums.largest_allowed = largest, sums.kept = kept;
        write_sample(p, number, shared.settings, sums, shared.first,
                     to_float(static_cast<const T*>(row.logits)[shared.first]));
    }
}

}  // namespace r1
