// A file for each head_dim, so that they compile beside each other.
#include "cuda/paged_decode.cuh"

namespace r1 {

template void launch_paged_decode<BF16, 64>(const PagedDecodeParams&, intptr_t);
template void launch_paged_decode<FP16, 64>(const PagedDecodeParams&, intptr_t);

}  // namespace r1
