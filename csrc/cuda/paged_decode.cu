#include <type_traits>

#include "cuda/dispatch.h"
#include "ops/paged_decode.h"

namespace r1 {

template <class T, int D>
void launch_paged_decode(const PagedDecodeParams& params, intptr_t stream);  // in paged_decode_64.cu and so on

void paged_decode_cuda(const PagedDecodeParams& params, intptr_t stream) {
    dispatch("paged_decode", params.dtype, params.head_dim, [&](auto number, auto head_dim) {
        launch_paged_decode<decltype(number), decltype(head_dim)::value>(params, stream);
    });
}

}  // namespace r1
