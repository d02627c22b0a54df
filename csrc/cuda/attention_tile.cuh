// Attention of a few query rows over 16 tokens, on tensor cores, by one warp.
//
// Operands are swapped: scores^T[16 tokens, 8 rows] = K Q^T and output^T[D, 8 rows] = V^T P^T, so that the few query rows
// of a KV head are the narrow side of the instruction (8) instead of padding its wide one (16).
#pragma once
#include "cuda/primitives.cuh"

namespace r1 {

constexpr int BLOCK_TOKENS = 16;  // tokens that one instruction takes

// Tiles of K and V in shared memory: rows of D numbers in 16-byte units, which are permuted so that the eight rows of an
// 8x8 matrix lie in different banks. With D = 96 a row is 12 units, so only the lower two bits may change.
template <int D>
R1_DEVICE int unit_offset(int row, int unit) {
    const int key = D == 96 ? row / 2 % 4 : row % 8;
    return (row * (D / 8) + (unit ^ key)) * 16;
}

// NT times 8 query rows of a warp: lane l holds Q's row l / 4, and of the running results rows 2 (l % 4) and the next.
template <int D, int NT>
struct QueryRows {
    uint32_t query[NT][D / 16][2];
    float output[NT][D / 16][4];  // of head dimensions 16 i + l / 4 (numbers 0, 1) and 8 more (2, 3)
    float top[NT][2];             // greatest score so far
    float sum[NT][2];             // of 2^(score - top), of this lane's tokens alone
};

// `row_pointer(n)` is Q's row n of the NT * 8, or nullptr where there is none (zeros).
template <class T, int D, int NT, class RowPointer>
R1_DEVICE void start_rows(QueryRows<D, NT>& rows, RowPointer&& row_pointer) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < NT; n++) {
        const T* row = row_pointer(n * 8 + lane / 4);
        const uint32_t* pairs = reinterpret_cast<const uint32_t*>(row) + lane % 4;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            rows.query[n][k][0] = row ? pairs[k * 8] : 0;
            rows.query[n][k][1] = row ? pairs[k * 8 + 4] : 0;
#pragma unroll
            for (int i = 0; i < 4; i++) rows.output[n][k][i] = 0;
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
            rows.top[n][j] = -INFINITY;
            rows.sum[n][j] = 0;
        }
    }
}

// Online softmax of one column pair of scores: scores become weights, and the factors that rescale the results so far.
template <int D, int NT>
R1_DEVICE void weigh(QueryRows<D, NT>& rows, int n, float (&scores)[4], float scale_log2, float (&factor)[2]) {
#pragma unroll
    for (int j = 0; j < 2; j++) {
        float top = scores[j] > scores[j + 2] ? scores[j] : scores[j + 2];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {  // over the lanes that hold other tokens of the same row
            const float other = shuffle_xor(top, mask);
            top = other > top ? other : top;
        }
        top = top > rows.top[n][j] ? top : rows.top[n][j];
        const float shift = top * scale_log2;
        factor[j] = fast_exp2(rows.top[n][j] * scale_log2 - shift);
        rows.top[n][j] = top;
        scores[j] = fast_exp2(scores[j] * scale_log2 - shift);
        scores[j + 2] = fast_exp2(scores[j + 2] * scale_log2 - shift);
        rows.sum[n][j] = rows.sum[n][j] * factor[j] + scores[j] + scores[j + 2];
    }
}

// Take the tokens first..first + 15 of the tiles `keys` and `values`; only those below `num_tokens` count (at least one).
template <class T, int D, int NT>
R1_DEVICE void attend(QueryRows<D, NT>& rows, const unsigned char* keys, const unsigned char* values, int first,
                      int num_tokens, float scale_log2) {
    const int lane = threadIdx.x % 32;
    float scores[NT][4] = {};
    const int key_row = first + lane % 16, key_unit = lane / 16;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4];
        load_matrix_x4(a, keys + unit_offset<D>(key_row, 2 * k + key_unit));
#pragma unroll
        for (int n = 0; n < NT; n++) mma_16x8x16<T>(scores[n], a, rows.query[n][k][0], rows.query[n][k][1]);
    }
    uint32_t weights[NT][2];
    float factor[NT][2];
    const int token = first + lane / 4;
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (token + i / 2 * 8 >= num_tokens) scores[n][i] = -INFINITY;
        weigh(rows, n, scores[n], scale_log2, factor[n]);
        weights[n][0] = transpose_8x8(pack<T>(scores[n][0], scores[n][1]));
        weights[n][1] = transpose_8x8(pack<T>(scores[n][2], scores[n][3]));
    }
    const int value_row = first + lane % 8 + lane / 16 * 8, value_unit = lane / 8 % 2;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4];
        load_matrix_x4_transposed(a, values + unit_offset<D>(value_row, 2 * k + value_unit));
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) rows.output[n][k][i] *= factor[n][i % 2];
            mma_16x8x16<T>(rows.output[n][k], a, weights[n][0], weights[n][1]);
        }
    }
}

// Add up the lanes' sums; afterwards every lane has its rows' whole sums.
template <int D, int NT>
R1_DEVICE void finish_sums(QueryRows<D, NT>& rows) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
            for (int mask = 4; mask < 32; mask *= 2) rows.sum[n][j] += shuffle_xor(rows.sum[n][j], mask);
}

}  // namespace r1
