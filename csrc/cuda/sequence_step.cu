#include "cuda/sequence_step.cuh"

namespace r1 {

void sequence_step_cuda(const SequenceStepParams& params, intptr_t stream) {
    constexpr size_t SHARED_BYTES = sizeof(int32_t) * STEP_WARPS * STEP_COUNTS;
    launch("sequence_step", sequence_step_kernel, {1, 1, STEP_THREADS, SHARED_BYTES}, params, stream);
}

}  // namespace r1
