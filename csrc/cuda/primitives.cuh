// What kernels need of the machine, by name. Under nvcc it is PTX, elsewhere emulation/primitives.h: the same kernel
// sources run in both.
#pragma once
#include <cstdint>

#include "core/numbers.h"

namespace r1 {

// A launch: blocks in x and y, threads of a block, bytes of dynamic shared memory.
struct Grid {
    unsigned x, y, threads;
    size_t shared_bytes;
};

}  // namespace r1

#if !defined(__CUDACC__)
#include "emulation/primitives.h"
#else
#include <cuda_runtime.h>

#include "cuda/launch.cuh"

#define R1_DEVICE __device__ __forceinline__
#define R1_KERNEL(threads, blocks_per_sm) __global__ void __launch_bounds__(threads, blocks_per_sm)

namespace r1 {

constexpr unsigned ALL_LANES = 0xFFFFFFFF;

R1_DEVICE unsigned char* dynamic_shared() {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    return shared_bytes;
}
R1_DEVICE uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
R1_DEVICE void block_sync() { __syncthreads(); }
R1_DEVICE void warp_sync() { __syncwarp(); }

// 16 bytes from global to shared memory, past L1; zeros where not `valid`, and then nothing is read.
R1_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(valid ? 16 : 0));
}
R1_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;"); }
template <int GROUPS_LEFT>
R1_DEVICE void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS_LEFT) : "memory");
}

template <class T>
R1_DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(ALL_LANES, value, mask);
}
R1_DEVICE int shuffle_up(int value, int distance) { return __shfl_up_sync(ALL_LANES, value, distance); }
R1_DEVICE uint32_t match_any(int value) { return __match_any_sync(ALL_LANES, value); }
R1_DEVICE int popcount(uint32_t bits) { return __popc(bits); }
R1_DEVICE void atomic_or(int* shared, int bits) { atomicOr(shared, bits); }
R1_DEVICE void atomic_min(int* shared, int value) { atomicMin(shared, value); }
R1_DEVICE int atomic_add(int* shared, int value) { return atomicAdd(shared, value); }  // returns what was there
R1_DEVICE void atomic_add(uint64_t* shared, uint64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(shared), static_cast<unsigned long long>(value));
}

// 16 bytes of global memory that nobody writes meanwhile, both places aligned.
R1_DEVICE void load_16(void* to, const void* global) {
    *static_cast<uint4*>(to) = __ldg(static_cast<const uint4*>(global));
}

// A product and a sum that the compiler does not fuse: the CPU twin computes the same bits.
R1_DEVICE float multiply_rounded(float x, float y) { return __fmul_rn(x, y); }
R1_DEVICE float add_rounded(float x, float y) { return __fadd_rn(x, y); }

// Four 8x8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
R1_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
R1_DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// D[16, 8] += A[16, 16] B[16, 8]; lane l has rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, of A, D and B^T.
template <class T>
R1_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

#define R1_DEFINE_MMA(T, name)                                                                                       \
    template <>                                                                                                      \
    R1_DEVICE void mma_16x8x16<T>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {                 \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                                                   \
            ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                             \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                         \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));                                         \
    }
R1_DEFINE_MMA(BF16, "bf16")
R1_DEFINE_MMA(FP16, "f16")
#undef R1_DEFINE_MMA

// Transpose of an 8x8 matrix of 16-bit elements: lane l holds row l / 4, columns 2 (l % 4) and the next.
R1_DEVICE uint32_t transpose_8x8(uint32_t pair) {
    uint32_t out;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

// Two numbers rounded to T, `low` in the lower half.
template <class T>
R1_DEVICE uint32_t pack(float low, float high);
template <>
R1_DEVICE uint32_t pack<BF16>(float low, float high) {
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}
template <>
R1_DEVICE uint32_t pack<FP16>(float low, float high) {
    uint32_t out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
}

R1_DEVICE float to_float(float x) { return x; }
R1_DEVICE float to_float(BF16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
R1_DEVICE float to_float(FP16 x) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
}

// ex2 and lg2 of the special function unit: 2 ulp.
R1_DEVICE float fast_exp2(float x) {
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
R1_DEVICE float fast_log2(float x) {
    float out;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
    return out;
}
R1_DEVICE float reciprocal_sqrt(float x) { return rsqrtf(x); }

}  // namespace r1
#endif
