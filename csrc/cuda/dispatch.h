// From run-time dtype and head_dim to a template's arguments. Host code.
#pragma once
#include "core/errors.h"
#include "core/numbers.h"

namespace r1 {

// Calls run(T{}, std::integral_constant<int, D>{}) for the 16-bit dtypes and the head_dims that there are kernels for.
template <int D, class Run>
void dispatch_dtype(const char* op, int32_t dtype, Run&& run) {
    if (dtype == static_cast<int32_t>(DType::bf16)) return run(BF16{}, std::integral_constant<int, D>{});
    if (dtype == static_cast<int32_t>(DType::fp16)) return run(FP16{}, std::integral_constant<int, D>{});
    raise<std::invalid_argument>(op, ": dtype = ", dtype, " must be bf16 (0) or fp16 (1) on CUDA");
}

template <class Run>
void dispatch(const char* op, int32_t dtype, int32_t head_dim, Run&& run) {
    if (head_dim == 64) return dispatch_dtype<64>(op, dtype, run);
    if (head_dim == 96) return dispatch_dtype<96>(op, dtype, run);
    if (head_dim == 128) return dispatch_dtype<128>(op, dtype, run);
    if (head_dim == 256) return dispatch_dtype<256>(op, dtype, run);
    raise<std::invalid_argument>(op, ": head_dim = ", head_dim, " must be 64, 96, 128 or 256");
}

}  // namespace r1
