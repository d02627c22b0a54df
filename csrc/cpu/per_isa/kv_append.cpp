#include <cmath>

#include "core/geometry.h"
#include "cpu/per_isa/entries.h"
#include "cpu/per_isa/vectors.h"

namespace r1 {
namespace R1_ISA_NAMESPACE {
namespace {

// What is done to a head before it is stored: bias [D], norm weights [D], cosine and sine [D / 2]; nullptr: not.
template <class T>
struct Treatment {
    const T *bias, *norm;
    const float *cosine, *sine;
    float norm_eps;
};

// Eight steps of half a vector would do for D = 16; a head is treated as fp32 in memory, where halves need no care.
template <class T>
void treat(const T* from, T* to, int D, const Treatment<T>& how) {
    float x[MAX_HEAD_DIM], weight[MAX_HEAD_DIM];
    Vec squares = {};
    for (int d = 0; d < D; d += LANES) {
        const Vec head = how.bias ? load(from + d) + load(how.bias + d) : load(from + d);
        store(x + d, head);
        squares = multiply_add(head, head, squares);
    }
    if (how.norm) {
        const Vec factor = splat(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(D) + how.norm_eps));
        for (int d = 0; d < D; d += LANES) store(weight + d, load(how.norm + d) * factor);
        for (int d = 0; d < D; d += LANES) store(x + d, load(x + d) * load(weight + d));
    }
    if (how.cosine)
        for (int d = 0; d < D / 2; d++) {
            const float low = x[d], high = x[d + D / 2];
            x[d] = low * how.cosine[d] - high * how.sine[d];
            x[d + D / 2] = high * how.cosine[d] + low * how.sine[d];
        }
    for (int d = 0; d < D; d += LANES) store(to + d, load(x + d));
}

template <class T>
const T* head_of(const void* weights, int head, int D) {
    return weights ? static_cast<const T*>(weights) + int64_t{head} * D : nullptr;
}

template <class T>
void append_token(const KvAppendParams& p, int64_t token) {
    const int D = p.head_dim, slot = p.slot[token];
    Treatment<T> how{};
    how.norm_eps = p.norm_eps;
    if (p.cosine) {
        how.cosine = p.cosine + int64_t{p.position[token]} * (D / 2);
        how.sine = p.sine + int64_t{p.position[token]} * (D / 2);
    }
    if (p.query)
        for (int head = 0; head < p.num_heads; head++) {
            how.bias = head_of<T>(p.query_bias, head, D);
            how.norm = static_cast<const T*>(p.query_norm);
            treat(static_cast<const T*>(p.query) + token * p.query_token_stride + head * p.query_head_stride,
                  static_cast<T*>(p.query_out) + token * p.query_out_token_stride + head * p.query_out_head_stride, D,
                  how);
        }
    if (slot < 0) return;
    const int64_t place = int64_t{slot / PAGE_TOKENS} * p.page_stride + slot % PAGE_TOKENS * D;
    for (int head = 0; head < p.num_kv_heads; head++) {
        how.bias = head_of<T>(p.key_bias, head, D);
        how.norm = static_cast<const T*>(p.key_norm);
        treat(static_cast<const T*>(p.key) + token * p.key_token_stride + head * p.key_head_stride,
              static_cast<T*>(p.key_pages) + place + head * p.page_head_stride, D, how);
    }
    how = Treatment<T>{};
    for (int head = 0; head < p.num_kv_heads; head++) {
        how.bias = head_of<T>(p.value_bias, head, D);
        treat(static_cast<const T*>(p.value) + token * p.value_token_stride + head * p.value_head_stride,
              static_cast<T*>(p.value_pages) + place + head * p.page_head_stride, D, how);
    }
}

}  // namespace

void append_tokens(const KvAppendParams& p, int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; token++) {
        if (p.dtype == static_cast<int32_t>(DType::bf16)) append_token<BF16>(p, token);
        if (p.dtype == static_cast<int32_t>(DType::fp16)) append_token<FP16>(p, token);
        if (p.dtype == static_cast<int32_t>(DType::fp32)) append_token<float>(p, token);
    }
}

}  // namespace R1_ISA_NAMESPACE
}  // namespace r1
