// Small kernels that show what the emulator does and what it refuses; tests/ops/test_emulator.py runs them.
#include "bindings/bindings.h"
#include "core/errors.h"
#include "cuda/primitives.cuh"

namespace r1 {
namespace {

struct ProbeParams {
    const uint16_t* a;  // [16, 16], bf16
    const uint16_t* b;  // [8, 16], bf16: B transposed
    float* out;         // [16, 8], or what the probe says
};

// out = A B, with A loaded by ldmatrix and B by ldmatrix (its transpose's rows), through shared memory.
R1_KERNEL(32, 1) multiply(const ProbeParams params) {
    auto* shared = reinterpret_cast<uint16_t*>(dynamic_shared());
    const int lane = threadIdx.x;
    copy_async_16(shared + lane * 8, params.a + lane * 8, true);
    copy_async_16(shared + 256 + lane * 8, params.b + lane % 16 * 8, lane < 16);
    commit_copies();
    wait_copies<0>();
    warp_sync();
    uint32_t a[4], b[4];
    load_matrix_x4(a, shared + (lane % 16) * 16 + lane / 16 * 8);
    load_matrix_x4(b, shared + 256 + (lane % 8) * 16 + lane / 8 % 2 * 8);
    float d[4] = {0, 0, 0, 0};
    mma_16x8x16<BF16>(d, a, b[0], b[1]);
    for (int i = 0; i < 4; i++) params.out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// out[row, column] of the transposes of A's upper left quarter, by movmatrix and by ldmatrix.trans: [2, 8, 8].
R1_KERNEL(32, 1) transpose(const ProbeParams params) {
    const int lane = threadIdx.x, row = lane / 4, column = lane % 4 * 2;
    const uint32_t pair = params.a[row * 16 + column] | static_cast<uint32_t>(params.a[row * 16 + column + 1]) << 16;
    uint32_t loaded[4];
    load_matrix_x4_transposed(loaded, params.a + lane % 8 * 16);
    const uint32_t both[2] = {transpose_8x8(pair), loaded[0]};
    for (int way = 0; way < 2; way++)
        for (int half = 0; half < 2; half++)
            params.out[way * 64 + row * 8 + column + half] =
                to_float(BF16{static_cast<uint16_t>(both[way] >> (16 * half))});
}

// out: [lane ^ 5, (lane - 3 or lane), lanes with the same lane / 4] for each lane.
R1_KERNEL(32, 1) shuffle(const ProbeParams params) {
    const int lane = threadIdx.x;
    params.out[lane] = static_cast<float>(shuffle_xor(lane, 5));
    params.out[32 + lane] = static_cast<float>(shuffle_up(lane, 3));
    params.out[64 + lane] = static_cast<float>(match_any(lane / 4));
}

// out: the shared memory that a copy goes to before and after the wait.
R1_KERNEL(32, 1) early_read(const ProbeParams params) {
    auto* shared = reinterpret_cast<float*>(dynamic_shared());
    const int lane = threadIdx.x;
    copy_async_16(shared + lane * 4, params.out, false);
    commit_copies();
    params.out[lane] = shared[lane * 4];
    wait_copies<0>();
    params.out[32 + lane] = shared[lane * 4];
}

// Each warp reads what the next one writes; right only when a barrier stands between, or when the order is kind.
R1_KERNEL(128, 1) exchange(const ProbeParams params) {
    auto* shared = reinterpret_cast<float*>(dynamic_shared());
    const int thread = threadIdx.x;
    shared[thread] = static_cast<float>(thread);
    warp_sync();
    params.out[thread] = shared[(thread + 96) % 128];
}

R1_KERNEL(64, 1) missing_barrier(const ProbeParams) {
    if (threadIdx.x < 32) block_sync();
}

R1_KERNEL(32, 1) divergent(const ProbeParams) {
    if (threadIdx.x < 16)
        warp_sync();
    else
        shuffle_xor(1, 1);
}

R1_KERNEL(32, 1) behind_the_end(const ProbeParams) { dynamic_shared()[1024 + threadIdx.x] = 0; }

R1_KERNEL(32, 1) forgotten_copy(const ProbeParams params) {
    copy_async_16(dynamic_shared(), params.a, true);
    commit_copies();
}

void run_probe(const std::string& name, uintptr_t a, uintptr_t b, uintptr_t out) {
    struct Probe {
        const char* name;
        void (*kernel)(ProbeParams);
        unsigned threads;
    };
    constexpr Probe PROBES[] = {
        {"multiply", multiply, 32},        {"transpose", transpose, 32},
        {"shuffle", shuffle, 32},          {"early_read", early_read, 32},
        {"exchange", exchange, 128},       {"missing_barrier", missing_barrier, 64},
        {"divergent", divergent, 32},      {"behind_the_end", behind_the_end, 32},
        {"forgotten_copy", forgotten_copy, 32},
    };
    for (const Probe& probe : PROBES)
        if (name == probe.name) {
            const ProbeParams params{reinterpret_cast<const uint16_t*>(a), reinterpret_cast<const uint16_t*>(b),
                                     reinterpret_cast<float*>(out)};
            return launch("probe", probe.kernel, {1, 1, probe.threads, 1024}, params, 0);
        }
    raise<std::invalid_argument>("no probe is called ", name);
}

}  // namespace

void bind_emulation(py::module_& module) {
    module.def("probe", &run_probe, py::arg("name"), py::arg("a"), py::arg("b"), py::arg("out"));
    module.def("set_schedule", &emulation::set_schedule, py::arg("seed"),
               "The order in which warps take turns from now on; 0 is ascending.");
}

}  // namespace r1
