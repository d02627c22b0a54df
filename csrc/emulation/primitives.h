// The host versions of cuda/primitives.cuh: the same names, each lane exactly as the PTX manual describes it.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/numbers.h"
#include "cpu/convert.h"
#include "emulation/emulator.h"

#define R1_DEVICE inline
#define R1_KERNEL(threads, blocks_per_sm) inline void
#define __restrict__

// Kernels say threadIdx.x and so on, as in CUDA.
#define threadIdx (::r1::emulation::thread_index())
#define blockIdx (::r1::emulation::block_index())
#define blockDim (::r1::emulation::block_size())
#define gridDim (::r1::emulation::grid_size())

namespace r1 {

using emulation::Slot;

inline unsigned char* dynamic_shared() { return emulation::shared_memory(); }
inline void block_sync() { emulation::sync_block(); }
inline void warp_sync() { emulation::collective("warp_sync", Slot{}, [](Slot*) {}); }

inline void copy_async_16(void* shared, const void* global, bool valid) {
    emulation::copy_async(shared, global, valid ? 16 : 0, valid ? 0 : 16);
}
inline void commit_copies() { emulation::commit_copies(); }
template <int GROUPS_LEFT>
inline void wait_copies() {
    emulation::wait_copies(GROUPS_LEFT);
}

template <class T>
inline T shuffle_xor(T value, int mask) {
    static_assert(sizeof(T) <= 8, "one word");
    Slot slot{};
    std::memcpy(&slot.words[0], &value, sizeof value);
    slot.words[1] = static_cast<uint64_t>(mask);
    slot = emulation::collective("shuffle_xor", slot, [](Slot* slots) {
        for (int lane = 0; lane < 32; lane++) slots[lane].words[2] = slots[lane ^ slots[lane].words[1]].words[0];
    });
    T result;
    std::memcpy(&result, &slot.words[2], sizeof result);
    return result;
}

inline int shuffle_up(int value, int distance) {
    Slot slot{};
    slot.words[0] = static_cast<uint64_t>(static_cast<uint32_t>(value));
    slot.words[1] = static_cast<uint64_t>(distance);
    slot = emulation::collective("shuffle_up", slot, [](Slot* slots) {
        for (int lane = 0; lane < 32; lane++) {
            const int from = lane - static_cast<int>(slots[lane].words[1]);
            slots[lane].words[2] = slots[from < 0 ? lane : from].words[0];
        }
    });
    return static_cast<int>(static_cast<uint32_t>(slot.words[2]));
}

inline uint32_t match_any(int value) {
    Slot slot{};
    slot.words[0] = static_cast<uint64_t>(static_cast<uint32_t>(value));
    slot = emulation::collective("match_any", slot, [](Slot* slots) {
        for (int lane = 0; lane < 32; lane++) {
            slots[lane].words[1] = 0;
            for (int other = 0; other < 32; other++)
                if (slots[other].words[0] == slots[lane].words[0]) slots[lane].words[1] |= uint64_t{1} << other;
        }
    });
    return static_cast<uint32_t>(slot.words[1]);
}

inline int popcount(uint32_t bits) { return __builtin_popcount(bits); }
inline void atomic_or(int* shared, int bits) { *shared |= bits; }
inline void atomic_min(int* shared, int value) { *shared = value < *shared ? value : *shared; }
inline int atomic_add(int* shared, int value) { return (*shared += value) - value; }
inline void atomic_add(uint64_t* shared, uint64_t value) { *shared += value; }

inline void load_16(void* to, const void* global) { std::memcpy(to, global, 16); }

inline float multiply_rounded(float x, float y) { return x * y; }
inline float add_rounded(float x, float y) { return x + y; }

// Lane l gives the address of row l % 8 of 8x8 matrix l / 8; register m of lane l gets row l / 4, columns 2 (l % 4) and
// the next of matrix m (of its transpose).
template <bool TRANSPOSED>
inline void load_matrices(uint32_t registers[4], const void* row) {
    Slot slot{};
    slot.words[0] = reinterpret_cast<uint64_t>(row);
    slot = emulation::collective(TRANSPOSED ? "ldmatrix.trans" : "ldmatrix", slot, [](Slot* slots) {
        const uint16_t* rows[32];
        for (int lane = 0; lane < 32; lane++) rows[lane] = reinterpret_cast<const uint16_t*>(slots[lane].words[0]);
        for (int lane = 0; lane < 32; lane++)
            for (int matrix = 0; matrix < 4; matrix++) {
                uint32_t pair = 0;
                for (int half = 0; half < 2; half++) {
                    const int a = lane / 4, b = lane % 4 * 2 + half;
                    const uint16_t bits = TRANSPOSED ? rows[matrix * 8 + b][a] : rows[matrix * 8 + a][b];
                    pair |= static_cast<uint32_t>(bits) << (16 * half);
                }
                slots[lane].words[matrix] = pair;
            }
    });
    for (int matrix = 0; matrix < 4; matrix++) registers[matrix] = static_cast<uint32_t>(slot.words[matrix]);
}
inline void load_matrix_x4(uint32_t registers[4], const void* row) { load_matrices<false>(registers, row); }
inline void load_matrix_x4_transposed(uint32_t registers[4], const void* row) { load_matrices<true>(registers, row); }

template <class T>
inline void run_mma(Slot* slots) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; lane++)
        for (int half = 0; half < 2; half++) {
            const int row = lane / 4, column = lane % 4 * 2 + half;
            for (int part = 0; part < 4; part++)
                a[row + part % 2 * 8][column + part / 2 * 8] =
                    to_float(T{static_cast<uint16_t>(slots[lane].words[part] >> (16 * half))});
            for (int part = 0; part < 2; part++)
                b[column + part * 8][row] =
                    to_float(T{static_cast<uint16_t>(slots[lane].words[4] >> (32 * part + 16 * half))});
        }
    for (int lane = 0; lane < 32; lane++)
        for (int pair = 0; pair < 2; pair++) {
            float c[2];
            std::memcpy(c, &slots[lane].words[6 + pair], sizeof c);
            for (int half = 0; half < 2; half++)
                for (int k = 0; k < 16; k++) c[half] += a[lane / 4 + pair * 8][k] * b[k][lane % 4 * 2 + half];
            std::memcpy(&slots[lane].words[6 + pair], c, sizeof c);
        }
}

// D[16, 8] += A[16, 16] B[16, 8]; lane l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, of A, D and B^T.
template <class T>
inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    Slot slot{};
    for (int part = 0; part < 4; part++) slot.words[part] = a[part];
    slot.words[4] = b0 | static_cast<uint64_t>(b1) << 32;
    std::memcpy(&slot.words[6], d, sizeof d);
    slot = emulation::collective("mma", slot, &run_mma<T>);
    std::memcpy(d, &slot.words[6], sizeof d);
}

// Transpose of an 8x8 matrix of 16-bit elements: lane l holds row l / 4, columns 2 (l % 4) and the next.
inline uint32_t transpose_8x8(uint32_t pair) {
    Slot slot{};
    slot.words[0] = pair;
    slot = emulation::collective("movmatrix", slot, [](Slot* slots) {
        for (int lane = 0; lane < 32; lane++) {
            uint32_t out = 0;
            for (int half = 0; half < 2; half++) {
                const int row = lane % 4 * 2 + half, column = lane / 4;
                const uint64_t source = slots[row * 4 + column / 2].words[0];
                out |= static_cast<uint32_t>(static_cast<uint16_t>(source >> (16 * (column % 2)))) << (16 * half);
            }
            slots[lane].words[1] = out;
        }
    });
    return static_cast<uint32_t>(slot.words[1]);
}

template <class T>
inline uint32_t pack(float low, float high) {
    return from_float<T>(low).bits | static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

inline float fast_exp2(float x) { return std::exp2(x); }
inline float fast_log2(float x) { return std::log2(x); }
inline float reciprocal_sqrt(float x) { return 1.0f / std::sqrt(x); }

// `kernel` is called with `params` by every thread of the grid.
template <class Params>
void launch(const char* op, void (*kernel)(Params), Grid grid, const Params& params, intptr_t) {
    (void)op;
    emulation::run_grid({grid.x, grid.y, 1}, {grid.threads, 1, 1}, grid.shared_bytes, [&] { kernel(params); });
}
inline int num_multiprocessors(const char*) { return 4; }  // few, so that blocks take several work items

}  // namespace r1
