#include "cuda/sample.cuh"

#include "core/errors.h"

namespace r1 {

void sample_cuda(const SampleParams& params, intptr_t stream) {
    const auto run = [&](void (*kernel)(SampleParams)) {
        const Grid grid{static_cast<unsigned>(params.num_rows), 1, SAMPLE_THREADS, sizeof(SampleShared)};
        launch("sample", kernel, grid, params, stream);
    };
    if (params.dtype == static_cast<int32_t>(DType::bf16)) return run(sample_kernel<BF16>);
    if (params.dtype == static_cast<int32_t>(DType::fp16)) return run(sample_kernel<FP16>);
    if (params.dtype == static_cast<int32_t>(DType::fp32)) return run(sample_kernel<float>);
    raise<std::invalid_argument>("sample: dtype = ", params.dtype, " must be bf16 (0), fp16 (1) or fp32 (2)");
}

}  // namespace r1
