#include "emulation/emulator.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "core/errors.h"
#include "emulation/fiber.h"

namespace r1::emulation {
namespace {

constexpr size_t SHARED_ALIGNMENT = 1024;
constexpr size_t GUARD_BYTES = 256;
constexpr unsigned char POISON = 0xFF;  // every fp32, fp16 and bf16 of such bytes is NaN

struct Copy {
    void* destination;
    const void* source;
    int bytes, zero_bytes;
};

struct Thread {
    Fiber fiber;
    Dim3 index;
    bool done = false;
    const char* waits_at = nullptr;  // the name of the barrier or collective, nullptr while it runs
    std::vector<Copy> uncommitted;
    std::deque<std::vector<Copy>> groups;
};

struct Warp {
    Slot slots[WARP_LANES];
    const char* name = nullptr;
    int arrived = 0, size = 0;
    uint64_t passes = 0;
};

struct Block {
    Dim3 index, size, grid;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    unsigned char* shared_base = nullptr;
    size_t shared_bytes = 0;
    const std::function<void()>* body = nullptr;
    size_t running = 0;
    size_t at_barrier = 0, num_done = 0;
    uint64_t barriers = 0;
    uint64_t progress = 0;  // grows whenever a thread gets past something
    std::exception_ptr error;
};

Block* block = nullptr;
std::mutex one_grid;
uint64_t schedule_seed = 0;

Thread& self() { return block->threads[block->running]; }

void wait_at(const char* name) {
    Thread& thread = self();
    thread.waits_at = name;
    thread.fiber.leave();
    if (block->error) std::rethrow_exception(block->error);  // unwind the other threads of a block that failed
    thread.waits_at = nullptr;
}

void thread_main() {
    try {
        (*block->body)();
        if (!self().uncommitted.empty() || !self().groups.empty())
            raise<std::logic_error>("a thread ends with copies that it never waited for");
    } catch (...) {
        if (!block->error) block->error = std::current_exception();
    }
    self().done = true;
    block->num_done++;
    block->progress++;
    self().fiber.leave();
}

void prepare_block(Block& fresh, size_t shared_bytes) {
    const size_t num_threads = size_t{fresh.size.x} * fresh.size.y * fresh.size.z;
    fresh.threads = std::vector<Thread>(num_threads);
    fresh.warps = std::vector<Warp>((num_threads + WARP_LANES - 1) / WARP_LANES);
    fresh.shared.assign(shared_bytes + SHARED_ALIGNMENT + GUARD_BYTES, POISON);
    const auto address = reinterpret_cast<uintptr_t>(fresh.shared.data());
    fresh.shared_base = fresh.shared.data() + (SHARED_ALIGNMENT - address % SHARED_ALIGNMENT) % SHARED_ALIGNMENT;
    fresh.shared_bytes = shared_bytes;
}

void reset_block(Block& fresh) {
    std::fill(fresh.shared.begin(), fresh.shared.end(), POISON);
    fresh.at_barrier = fresh.num_done = 0;
    for (size_t number = 0; number < fresh.threads.size(); number++) {
        Thread& thread = fresh.threads[number];
        const unsigned n = static_cast<unsigned>(number);
        thread.index = {n % fresh.size.x, n / fresh.size.x % fresh.size.y, n / (fresh.size.x * fresh.size.y)};
        thread.done = false;
        thread.waits_at = nullptr;
        thread.fiber.prepare(&thread_main);
    }
    for (size_t warp = 0; warp < fresh.warps.size(); warp++) {
        fresh.warps[warp].arrived = 0;
        fresh.warps[warp].size =
            static_cast<int>(std::min<size_t>(WARP_LANES, fresh.threads.size() - warp * WARP_LANES));
    }
}

void fail_deadlock(const Block& stuck) {
    std::string text = "threads wait for ever:";
    for (size_t number = 0; number < stuck.threads.size(); number++)
        if (const Thread& thread = stuck.threads[number]; !thread.done && thread.waits_at)
            text += " " + std::to_string(number) + " at " + thread.waits_at;
    raise<std::logic_error>(text.substr(0, 400));
}

// Give every living thread turns until all are done; a whole round without progress is a deadlock.
void run_threads(Block& fresh, std::mt19937_64& random) {
    std::vector<size_t> order(fresh.warps.size());
    std::iota(order.begin(), order.end(), size_t{0});
    while (fresh.num_done < fresh.threads.size()) {
        const uint64_t before = fresh.progress;
        if (schedule_seed) std::shuffle(order.begin(), order.end(), random);
        for (size_t warp : order)
            for (size_t lane = 0; lane < WARP_LANES; lane++) {
                fresh.running = warp * WARP_LANES + lane;
                if (fresh.running < fresh.threads.size() && !self().done) self().fiber.enter();
            }
        if (fresh.progress == before && !fresh.error) fail_deadlock(fresh);
    }
    if (fresh.error) std::rethrow_exception(fresh.error);
    for (size_t byte = fresh.shared_bytes; byte < fresh.shared_bytes + GUARD_BYTES; byte++)
        if (fresh.shared_base[byte] != POISON)
            raise<std::logic_error>("written behind the ", fresh.shared_bytes, " bytes of shared memory");
}

void run_copy(const Copy& copy) {
    std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.bytes));
    std::memset(static_cast<unsigned char*>(copy.destination) + copy.bytes, 0, static_cast<size_t>(copy.zero_bytes));
}

}  // namespace

void run_grid(Dim3 grid, Dim3 size, size_t shared_bytes, const std::function<void()>& thread) {
    const std::lock_guard<std::mutex> lock(one_grid);
    std::mt19937_64 random(schedule_seed);
    Block fresh;
    fresh.size = size;
    fresh.grid = grid;
    fresh.body = &thread;
    prepare_block(fresh, shared_bytes);
    struct Current {  // so that an error leaves no dangling block
        explicit Current(Block* running) { block = running; }
        ~Current() { block = nullptr; }
    } current(&fresh);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                fresh.index = {x, y, z};
                reset_block(fresh);
                run_threads(fresh, random);
            }
}

void set_schedule(uint64_t seed) { schedule_seed = seed; }

Dim3 thread_index() { return self().index; }
Dim3 block_index() { return block->index; }
Dim3 block_size() { return block->size; }
Dim3 grid_size() { return block->grid; }
int lane_index() { return static_cast<int>(block->running % WARP_LANES); }
unsigned char* shared_memory() { return block->shared_base; }

void sync_block() {
    const uint64_t pass = block->barriers;
    if (++block->at_barrier == block->threads.size()) {
        block->at_barrier = 0;
        block->barriers++;
        block->progress++;
        return;
    }
    while (block->barriers == pass) wait_at("__syncthreads");
}

Slot collective(const char* name, const Slot& slot, void (*all)(Slot* slots)) {
    Warp& warp = block->warps[block->running / WARP_LANES];
    if (warp.arrived == 0) warp.name = name;
    if (std::strcmp(warp.name, name) != 0)
        raise<std::logic_error>("lanes of a warp meet at different operations: ", warp.name, " and ", name);
    Slot& own = warp.slots[lane_index()];
    own = slot;
    const uint64_t pass = warp.passes;
    if (++warp.arrived == warp.size) {
        all(warp.slots);
        warp.arrived = 0;
        warp.passes++;
        block->progress++;
    } else {
        while (warp.passes == pass) wait_at(name);
    }
    return own;
}

void copy_async(void* destination, const void* source, int bytes, int zero_bytes) {
    self().uncommitted.push_back({destination, source, bytes, zero_bytes});
}

void commit_copies() {
    self().groups.push_back(std::move(self().uncommitted));
    self().uncommitted.clear();
}

void wait_copies(int groups_left) {
    auto& groups = self().groups;
    for (; groups.size() > static_cast<size_t>(groups_left); groups.pop_front())
        for (const Copy& copy : groups.front()) run_copy(copy);
}

}  // namespace r1::emulation
