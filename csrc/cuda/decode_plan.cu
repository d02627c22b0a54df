#include "cuda/decode_plan.cuh"

namespace r1 {

void decode_plan_cuda(const DecodePlanParams& params, intptr_t stream) {
    launch("decode_plan", decode_plan_kernel,
           {1, 1, PLAN_THREADS, plan_shared_bytes(params.num_rows, params.num_groups)}, params, stream);
}

}  // namespace r1
