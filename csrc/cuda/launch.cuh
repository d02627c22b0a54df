// Launching a kernel, and what a failure says. Host code of .cu files.
#pragma once
#include <cuda_runtime.h>

#include "core/errors.h"

namespace r1 {

inline void check_cuda(cudaError_t status, const char* op, const char* call) {
    if (status == cudaSuccess) return;
    if (status == cudaErrorInsufficientDriver || status == cudaErrorNoDevice)
        raise<std::runtime_error>(op, ": there is no usable NVIDIA GPU or driver here (", cudaGetErrorString(status),
                                  "); pass CPU tensors");
    raise<std::runtime_error>(op, ": ", call, " failed: ", cudaGetErrorName(status), ", ", cudaGetErrorString(status));
}

// Launch on `stream`, a cudaStream_t as PyTorch gives it (torch.cuda.current_stream().cuda_stream), on the current
// device. Waits for nothing and allocates nothing, so that a CUDA graph can capture it.
template <class Params>
void launch(const char* op, void (*kernel)(Params), Grid grid, const Params& params, intptr_t stream) {
    if (grid.x == 0 || grid.y == 0) return;
    constexpr size_t DEFAULT_SHARED_BYTES = 48 << 10;
    if (grid.shared_bytes > DEFAULT_SHARED_BYTES)
        check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(grid.shared_bytes)),
                   op, "cudaFuncSetAttribute");
    kernel<<<dim3(grid.x, grid.y), grid.threads, grid.shared_bytes, reinterpret_cast<cudaStream_t>(stream)>>>(params);
    check_cuda(cudaGetLastError(), op, "the launch");
}

// Multiprocessors of the current device.
inline int num_multiprocessors(const char* op) {
    int device = 0, count = 0;
    check_cuda(cudaGetDevice(&device), op, "cudaGetDevice");
    check_cuda(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), op, "cudaDeviceGetAttribute");
    return count;
}

}  // namespace r1
