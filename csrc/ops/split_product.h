// split_product: a product of bf16 matrices with fp32 accumulation, kept as the sum of two bf16 matrices.
#pragma once
#include <cstdint>

#include "core/numbers.h"

namespace r1 {

// Columns of the result that a thread takes at once: 4 registers of 16 fp32 numbers.
constexpr int64_t SPLIT_COLUMNS = 64;

// left [M, K] times the transpose of right [N, K]; K is even. high + low is the result within 2^-16 of it: high is the
// accumulator rounded, low what rounding took, 0 where high is infinite.
struct SplitProductParams {
    const BF16* left = nullptr;   // [M, K]
    const BF16* right = nullptr;  // [N, K]
    BF16* high = nullptr;         // out [M, N]
    BF16* low = nullptr;          // out [M, N]
    int64_t left_stride = 0, right_stride = 0, out_stride = 0;  // of rows; those of `high` and `low` are the same
    int64_t num_rows = 0, num_columns = 0, depth = 0;
};

// Numbers of 4 bytes that a thread needs to lay out its columns of `right`.
inline int64_t split_product_scratch(const SplitProductParams& params) {
    return (params.depth / 2 + 15) / 16 * 16 * SPLIT_COLUMNS;
}

void split_product_cpu(const SplitProductParams& params, int num_threads);

}  // namespace r1
