// The C++ parts under the sanitizers, with no Python between: threads, the CPU twins on four of them, the page pool.
// tests/ops/test_sanitizers.py compiles and runs it; a difference, or what a sanitizer finds, is a failure.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <type_traits>

#include "arena/arena.h"
#include "arena/host_memory.h"
#include "core/errors.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "ops/elementwise.h"
#include "ops/given_logprob.h"
#include "ops/sample.h"
#include "ops/sequence_step.h"
#include "ops/split_product.h"
#include "pool/page_pool.h"
#include "sanitized_batch.h"

namespace {

constexpr int THREADS = 4;

void run_threads() {
    // Two callers at once, as two threads of a program may be.
    const auto caller = [] {
        for (int round = 0; round < 200; round++) {
            const int64_t count = round % 37;
            std::vector<int> done(count);
            run_tasks(count, 1 + round % THREADS, [&](int64_t number) { done[number]++; });
            for (int times : done) EXPECT(times == 1);
            std::atomic<int64_t> covered{0};
            run_ranges(count, 3, THREADS, [&](int64_t begin, int64_t end) { covered += end - begin; });
            EXPECT(covered == count);
            if (round % 10 == 0)
                expect_throw<std::runtime_error>([&] {
                    std::atomic<int> failing{0};
                    run_tasks(50, THREADS, [&](int64_t number) {
                        failing++;  // two at once, unless the other threads sleep long
                        for (int turn = 0; turn < 10000 && failing < 2; turn++) std::this_thread::yield();
                        raise<std::runtime_error>("task ", number);
                    });
                });
        }
    };
    std::thread other(caller);
    caller();
    other.join();
}

// Rows with every kind of cut, a faulty one and a greedy one, each exactly as long as the vocabulary: what is drawn.
template <class T>
std::vector<int32_t> draw_tokens(DType dtype, int num_threads) {
    constexpr int ROWS = 7, VOCAB = 1500, BANNED = 2;
    std::mt19937 random{2};
    std::vector<T> logits(ROWS * VOCAB);
    for (T& logit : logits) logit = from_float<T>(static_cast<float>(random() % 4096) / 256 - 8);
    logits[6 * VOCAB + 3] = from_float<T>(NAN);
    const std::vector<float> temperature{1, 0, 0.6f, 1, 2, 0.3f, 1}, top_p{1, 1, 0.95f, 1, 0.5f, 1, 1};
    const std::vector<float> min_p{0, 0, 0, 0.1f, 0, 0, 0};
    const std::vector<int32_t> key(2 * ROWS, 5), index(ROWS, 1), position{0, 1, 2, 3, 4, 5, 6};
    std::vector<int32_t> top_k{0, 0, 0, 0, 40, 1000, 0};
    std::vector<int32_t> banned(ROWS * BANNED, -1), token(ROWS), status(ROWS);
    std::vector<float> logp(ROWS), log_kept_mass(ROWS), entropy(ROWS);
    banned[2] = 1499, banned[3] = 0;
    SampleParams p;
    p.logits = logits.data(), p.temperature = temperature.data(), p.top_k = top_k.data(), p.top_p = top_p.data();
    p.min_p = min_p.data(), p.key = key.data(), p.sample_index = index.data(), p.position = position.data();
    p.banned = banned.data(), p.token = token.data(), p.logp = logp.data(), p.log_kept_mass = log_kept_mass.data();
    p.entropy = entropy.data(), p.status = status.data(), p.row_stride = VOCAB, p.num_rows = ROWS, p.vocab = VOCAB;
    p.num_banned = BANNED, p.dtype = static_cast<int32_t>(dtype);
    sample_cpu(p, num_threads);
    EXPECT(status[5] == SAMPLE_OK && status[6] == SAMPLE_BAD_LOGIT && token[6] == -1);
    top_k[0] = -1;
    expect_throw<std::invalid_argument>([&] { sample_cpu(p, num_threads); });
    if constexpr (std::is_same_v<T, float>) {
        std::vector<int32_t> given = token;
        for (int32_t& one : given) one = std::max(one, 0);
        std::vector<float> given_logp(ROWS), given_entropy(ROWS);
        given_logprob_cpu({logits.data(), given.data(), given_logp.data(), given_entropy.data(), VOCAB, ROWS, VOCAB, 1.0f},
                          num_threads);
        for (int row = 0; row < ROWS; row++) {
            if (row == 6) EXPECT(std::isnan(given_logp[row]) && std::isnan(given_entropy[row]));
            if (row != 6 && temperature[row] == 1) EXPECT(given_logp[row] == logp[row] && given_entropy[row] == entropy[row]);
        }
    }
    return token;
}

// A layer's small operations on enough rows for every thread, in memory of exactly their size: the bytes they leave.
template <class T>
std::vector<T> between_products(DType dtype, int num_threads) {
    constexpr int ROWS = 600, DIM = 176, HEADS = 6, KV_HEADS = 2;  // 11 vectors of 16: none is beyond the end
    const int32_t number = static_cast<int32_t>(dtype);
    const auto numbers = [](int64_t count, int seed) {
        std::vector<T> result(count);
        std::mt19937 random(seed);
        for (T& x : result) x = from_float<T>(static_cast<float>(random() % 2048) / 512 - 2);
        return result;
    };
    std::vector<T> hidden = numbers(ROWS * DIM, 1), heads = numbers(ROWS * (HEADS + 2 * KV_HEADS) * 48, 2), out(ROWS * DIM);
    const std::vector<T> delta = numbers(ROWS * DIM, 3), weight = numbers(DIM, 4), angles = numbers(ROWS * 48, 5);
    add_rms_norm_cpu({hidden.data(), delta.data(), weight.data(), out.data(), ROWS, DIM, 1e-5f, number}, num_threads);
    rotate_heads_cpu({heads.data(), angles.data(), angles.data(), weight.data(), weight.data(), ROWS, HEADS, KV_HEADS, 48,
                      1e-5f, number},
                     num_threads);
    hidden.insert(hidden.end(), out.begin(), out.end());
    hidden.insert(hidden.end(), heads.begin(), heads.end());
    std::vector<T> gated(ROWS / 2 * DIM);
    silu_mul_cpu({delta.data(), gated.data(), ROWS / 2, DIM, number}, num_threads);
    hidden.insert(hidden.end(), gated.begin(), gated.end());
    expect_throw<std::invalid_argument>([&] { silu_mul_cpu({delta.data(), gated.data(), 1, 8, number}, num_threads); });
    return hidden;
}

// Columns laid out before the product, and within it.
void run_products() {
    constexpr int ROWS = 13, COLUMNS = 150, DEPTH = 38;
    std::vector<BF16> left(ROWS * DEPTH), right(COLUMNS * DEPTH), high(ROWS * COLUMNS), low(ROWS * COLUMNS);
    for (size_t i = 0; i < left.size(); i++) left[i] = from_float<BF16>(static_cast<float>(i % 31) - 15);
    for (size_t i = 0; i < right.size(); i++) right[i] = from_float<BF16>(static_cast<float>(i % 29) - 14);
    SplitProductParams p;
    p.left = left.data(), p.right = right.data(), p.high = high.data(), p.low = low.data();
    p.left_stride = p.right_stride = p.depth = DEPTH, p.out_stride = p.num_columns = COLUMNS, p.num_rows = ROWS;
    split_product_cpu(p, THREADS);
    std::vector<float> sum(ROWS * COLUMNS);
    p.sum = sum.data();
    split_product_cpu(p, THREADS);
    for (size_t i = 0; i < sum.size(); i++) EXPECT(to_float(high[i]) + to_float(low[i]) == sum[i]);
    std::vector<uint32_t> memory(split_product_blocks(p) * split_product_scratch(p) + 16);
    uint32_t* packed = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64 / 4;
    if (current_isa() != Isa::avx512_bf16) {
        expect_throw<std::invalid_argument>([&] { pack_columns_cpu(p, packed, THREADS); });
        return;
    }
    const std::vector<float> before = sum;
    pack_columns_cpu(p, packed, THREADS), p.packed = packed;
    split_product_cpu(p, THREADS);
    EXPECT(sum == before);
}

template <class T>
void run_twins(DType dtype) {
    select_isa("plain");
    const std::vector<int32_t> tokens = draw_tokens<T>(dtype, 1);
    for (Isa isa : compiled_isas()) {
        if (isa > best_isa()) continue;
        select_isa(name_of(isa));
        EXPECT(draw_tokens<T>(dtype, THREADS) == tokens);
        const std::vector<T> one_thread = between_products<T>(dtype, 1), threads = between_products<T>(dtype, THREADS);
        EXPECT(std::memcmp(one_thread.data(), threads.data(), threads.size() * sizeof(T)) == 0);
        run_products();
        for (int head_dim : {64, 80, 256}) {
            Batch<T> one(head_dim), several(head_dim);
            one.append(dtype, 1), several.append(dtype, THREADS);
            one.copy(1), several.copy(THREADS);
            EXPECT(one.attend(dtype, 1) == several.attend(dtype, THREADS));
        }
    }
}

// Any order of calls, refusals among them; check() looks at everything.
void run_pool(uint32_t seed) {
    constexpr int ROWS = 3, GROUPS = 3, TABLE = 4;
    std::vector<int32_t> suffix_pages(ROWS * TABLE), prefix_pages(GROUPS * TABLE), length(ROWS), group(ROWS);
    std::vector<int32_t> prefix_length(GROUPS), slots(TABLE * PAGE_TOKENS);
    PagePoolParams params;
    params.suffix_pages = suffix_pages.data(), params.prefix_pages = prefix_pages.data();
    params.suffix_length = length.data(), params.group = group.data(), params.prefix_length = prefix_length.data();
    params.num_pages = 14, params.num_host_pages = 6, params.num_sequences = 5, params.num_rows = ROWS;
    params.num_groups = GROUPS, params.suffix_table_pages = params.prefix_table_pages = TABLE;
    PagePool pool(params);
    std::mt19937 random(seed);
    std::vector<Handle> sequences{12345}, groups{NO_HANDLE, 77};  // some that are not, and later some that are gone
    for (int step = 0; step < 3000; step++) {
        const Handle sequence = sequences[random() % sequences.size()], prompt = groups[random() % groups.size()];
        const int64_t tokens = random() % 140;
        try {
            switch (random() % 13) {
                case 0: groups.push_back(pool.add_group(tokens)); break;
                case 1: for (Handle fresh : pool.add_sequences(prompt, tokens % 3)) sequences.push_back(fresh); break;
                case 2: sequences.push_back(pool.fork(sequence)); break;
                case 3: pool.free_sequences({sequence, sequences.back()}); break;
                case 4: pool.free_sequences({sequence}); break;
                case 5: pool.release_group(prompt); break;
                case 6: pool.bind(sequence, static_cast<int64_t>(random() % 4)); break;
                case 7: pool.unbind(sequence); break;
                case 8: pool.swap_out({sequence}); break;
                case 9: pool.swap_in({sequence}); break;
                case 10: pool.truncate(sequence, tokens); break;
                case 11: random() % 2 ? pool.swap_out_group(prompt) : pool.swap_in_group(prompt); break;
                default:
                    pool.reserve({sequence}, {tokens});
                    pool.next_slots({sequence}, {tokens}, slots.data());
                    pool.advance({sequence}, {tokens});
            }
        } catch (const PoolExhausted&) {
        } catch (const std::invalid_argument&) {
        }
        pool.check();
        if (sequences.size() > 12) sequences.erase(sequences.begin() + random() % 6);
        if (groups.size() > 8) groups.erase(groups.begin() + 1 + random() % 4);
    }
}

// Steps of rows whose numbers are right, at an edge, or anything: whatever they hold, nothing else is touched.
void run_steps(uint32_t seed) {
    constexpr int ROWS = 37, TABLE = 2, CAPACITY = 5, WORDS = 11;
    std::mt19937 random(seed);
    const auto any = [&](int32_t good) {
        constexpr int32_t EDGES[] = {-1, 0, 63, 64, 127, 128, 129, CAPACITY, INT32_MAX, INT32_MIN};
        return random() % 8 ? good : random() % 2 ? EDGES[random() % 10] : static_cast<int32_t>(random());
    };
    std::vector<std::vector<int32_t>> words(WORDS, std::vector<int32_t>(ROWS));
    const int32_t good[WORDS] = {3, 0, CAPACITY, 0, LIVE, 0, 0, 9, 0, -1, -1};
    for (int field = 0; field < WORDS; field++)
        for (int32_t& word : words[field]) word = any(good[field]);
    std::vector<int32_t> table(ROWS * TABLE), eos{7}, tokens(ROWS * CAPACITY), counts(STEP_COUNTS);
    for (int32_t& page : table) page = any(5);
    std::vector<float> numbers(ROWS), logp(ROWS * CAPACITY), mass(ROWS * CAPACITY), entropy(ROWS * CAPACITY);
    SequenceStepParams p;
    const int32_t* SequenceStepParams::*const inputs[] = {&SequenceStepParams::drawn_token,
                                                          &SequenceStepParams::drawn_status,
                                                          &SequenceStepParams::max_tokens,
                                                          &SequenceStepParams::min_tokens};
    int32_t* SequenceStepParams::*const rows[] = {
        &SequenceStepParams::state,         &SequenceStepParams::num_generated, &SequenceStepParams::token,
        &SequenceStepParams::position,      &SequenceStepParams::suffix_length, &SequenceStepParams::kv_slot,
        &SequenceStepParams::group};
    for (int field = 0; field < 4; field++) p.*inputs[field] = words[field].data();
    for (int field = 0; field < 7; field++) p.*rows[field] = words[4 + field].data();
    p.drawn_logp = p.drawn_kept_mass = p.drawn_entropy = numbers.data();
    p.eos = eos.data(), p.page_table = table.data(), p.tokens = tokens.data(), p.logp = logp.data();
    p.log_kept_mass = mass.data(), p.entropy = entropy.data(), p.counts = counts.data();
    p.num_rows = ROWS, p.num_eos = 1, p.table_pages = TABLE, p.capacity = CAPACITY;
    for (int step = 0; step < CAPACITY; step++) {
        const auto live = [&] { return std::count(p.state, p.state + ROWS, static_cast<int32_t>(LIVE)); };
        const auto before = live();
        sequence_step_cpu(p, THREADS);
        EXPECT(counts[COUNT_LIVE] == live());
        EXPECT(counts[COUNT_LIVE] + counts[COUNT_ENDED] + counts[COUNT_NO_PAGE] + counts[COUNT_FAULTS] == before);
    }
    EXPECT(counts[COUNT_LIVE] == 0);
}

void run_arena() {
    Arena<HostMemory> arena(int64_t{1} << 24);
    const int64_t half = arena.num_bytes() / 2;
    for (int round = 0; round < 3; round++) {
        arena.commit(0, 2 * half);
        std::memset(reinterpret_cast<void*>(arena.address()), 1, static_cast<size_t>(2 * half));
        arena.release(0, half);
        expect_throw<std::invalid_argument>([&] { arena.release(0, 2 * half); });
        expect_throw<std::invalid_argument>([&] { arena.require(half - 1, 2); });
        arena.commit(0, half);
        EXPECT(*reinterpret_cast<const char*>(arena.address()) == 0);
        arena.release(0, 2 * half);
    }
}

}  // namespace

int main() {
    run_arena();
    run_threads();
    run_twins<BF16>(DType::bf16);
    run_twins<FP16>(DType::fp16);
    run_twins<float>(DType::fp32);
    for (uint32_t seed = 0; seed < 8; seed++) run_pool(seed);
    for (uint32_t seed = 0; seed < 200; seed++) run_steps(seed);
    std::puts("nothing found");
}
