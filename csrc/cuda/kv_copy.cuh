// A block for each tile; the lists travel with the launch, so that nothing is allocated or waited for. The same kernel
// reads and writes page-locked host memory, which the GPU addresses as its own.
#pragma once
#include "cuda/primitives.cuh"
#include "ops/kv_copy.h"

namespace r1 {

constexpr int COPY_THREADS = 256;
constexpr int COPY_PAIRS = 448;   // of a launch: its parameters have 4 KiB in all
constexpr int COPY_IN_FLIGHT = 4;  // 16-byte loads of a thread before it stores: a tile of head_dim 128 in one go

struct alignas(16) Bytes16 {
    uint32_t words[4];
};

struct KvCopyBatch {
    KvCopyParams copy;  // num_pairs: of this launch
    int32_t source[COPY_PAIRS], destination[COPY_PAIRS];
};
static_assert(sizeof(KvCopyBatch) <= 4096, "a launch takes 4 KiB of parameters");

R1_KERNEL(COPY_THREADS, 4) kv_copy_kernel(const KvCopyBatch batch) {
    const KvCopyParams& p = batch.copy;
    const int tiles = p.num_pairs * p.num_kv_heads, tile = blockIdx.x % tiles;
    const int64_t layer = blockIdx.x / tiles, pair = tile / p.num_kv_heads, head = tile % p.num_kv_heads;
    const bool is_key = blockIdx.y == 0;
    const auto* from = reinterpret_cast<const Bytes16*>(
        static_cast<const char*>(is_key ? p.source_key : p.source_value) + layer * p.source_layer_stride +
        batch.source[pair] * p.source_page_stride + head * p.source_head_stride);
    auto* to = reinterpret_cast<Bytes16*>(static_cast<char*>(is_key ? p.destination_key : p.destination_value) +
                                          layer * p.destination_layer_stride +
                                          batch.destination[pair] * p.destination_page_stride +
                                          head * p.destination_head_stride);
    const int units = static_cast<int>(p.tile_bytes / static_cast<int64_t>(sizeof(Bytes16)));
    for (int first = threadIdx.x; first < units; first += COPY_THREADS * COPY_IN_FLIGHT) {
        Bytes16 held[COPY_IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < COPY_IN_FLIGHT; i++)
            if (first + i * COPY_THREADS < units) held[i] = from[first + i * COPY_THREADS];
#pragma unroll
        for (int i = 0; i < COPY_IN_FLIGHT; i++)
            if (first + i * COPY_THREADS < units) to[first + i * COPY_THREADS] = held[i];
    }
}

}  // namespace r1
