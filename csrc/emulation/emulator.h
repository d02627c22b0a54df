// Runs a CUDA kernel's own source on the host: one block at a time, a fiber for each of its threads.
//
// What it models: shared memory that holds NaN until it is written, exactly as large as the launch says; cp.async that
// lands at its wait and not before; collectives of a warp that fail when its lanes meet at different places;
// __syncthreads that fails when threads are missing; a seeded order of warps, so that a missing barrier shows itself.
// What it does not model: races within one pass of a warp, the order of additions inside an mma, and time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>

namespace r1::emulation {

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
};

constexpr int WARP_LANES = 32;
constexpr int SLOT_WORDS = 8;

// What a lane gives to a collective and gets from it: each lane reads only its own slot afterwards.
struct Slot {
    uint64_t words[SLOT_WORDS];
};

// Run `thread` once for every thread of every block. Raises std::logic_error for what no GPU would survive.
void run_grid(Dim3 grid, Dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// Warps take turns in an order drawn from this seed; 0 is ascending order.
void set_schedule(uint64_t seed);

// For the fiber that runs:
Dim3 thread_index();
Dim3 block_index();
Dim3 block_size();
Dim3 grid_size();
int lane_index();
unsigned char* shared_memory();
void sync_block();

// Put `slot` into this lane's place; the last lane to arrive runs `all(slots)` for the whole warp; returns the lane's own
// slot as `all` left it. `name` is a literal; lanes that meet at different names are an error.
Slot collective(const char* name, const Slot& slot, void (*all)(Slot* slots));

// cp.async: copies wait in groups for this thread's wait.
void copy_async(void* destination, const void* source, int bytes, int zero_bytes);
void commit_copies();
void wait_copies(int groups_left);

}  // namespace r1::emulation
