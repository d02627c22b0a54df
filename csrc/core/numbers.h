// Element types of the cache and of queries: bf16, fp16 and fp32, the same bits on both sides of the bus.
#pragma once
#include <cstdint>
#include <cstring>

namespace r1 {

struct BF16 {
    uint16_t bits;
};
struct FP16 {
    uint16_t bits;
};

// As r1fast.ops.checks.DTYPES numbers them.
enum class DType : int32_t { bf16 = 0, fp16 = 1, fp32 = 2 };

inline int64_t bytes_of(DType dtype) { return dtype == DType::fp32 ? 4 : 2; }

}  // namespace r1
