// The decode operations: their parameters, and each op for CUDA and for the CPU.
#include "bindings/bindings.h"
#include "bindings/fields.h"
#include "ops/attention_merge.h"
#include "ops/decode_plan.h"
#include "ops/kv_append.h"
#include "ops/kv_copy.h"
#include "ops/paged_decode.h"

namespace r1 {

void bind_decode(py::module_& module) {
    ParamsClass<KvAppendParams>(module, "KvAppendParams")
        .R1_FIELD(KvAppendParams, query)
        .R1_FIELD(KvAppendParams, key)
        .R1_FIELD(KvAppendParams, value)
        .R1_FIELD(KvAppendParams, query_out)
        .R1_FIELD(KvAppendParams, key_pages)
        .R1_FIELD(KvAppendParams, value_pages)
        .R1_FIELD(KvAppendParams, slot)
        .R1_FIELD(KvAppendParams, position)
        .R1_FIELD(KvAppendParams, query_bias)
        .R1_FIELD(KvAppendParams, key_bias)
        .R1_FIELD(KvAppendParams, value_bias)
        .R1_FIELD(KvAppendParams, query_norm)
        .R1_FIELD(KvAppendParams, key_norm)
        .R1_FIELD(KvAppendParams, cosine)
        .R1_FIELD(KvAppendParams, sine)
        .R1_FIELD(KvAppendParams, query_token_stride)
        .R1_FIELD(KvAppendParams, query_head_stride)
        .R1_FIELD(KvAppendParams, key_token_stride)
        .R1_FIELD(KvAppendParams, key_head_stride)
        .R1_FIELD(KvAppendParams, value_token_stride)
        .R1_FIELD(KvAppendParams, value_head_stride)
        .R1_FIELD(KvAppendParams, query_out_token_stride)
        .R1_FIELD(KvAppendParams, query_out_head_stride)
        .R1_FIELD(KvAppendParams, page_stride)
        .R1_FIELD(KvAppendParams, page_head_stride)
        .R1_FIELD(KvAppendParams, num_tokens)
        .R1_FIELD(KvAppendParams, num_heads)
        .R1_FIELD(KvAppendParams, num_kv_heads)
        .R1_FIELD(KvAppendParams, head_dim)
        .R1_FIELD(KvAppendParams, num_pages)
        .R1_FIELD(KvAppendParams, num_positions)
        .R1_FIELD(KvAppendParams, norm_eps)
        .R1_FIELD(KvAppendParams, dtype);
    ParamsClass<DecodePlanParams>(module, "DecodePlanParams")
        .R1_FIELD(DecodePlanParams, suffix_length)
        .R1_FIELD(DecodePlanParams, group)
        .R1_FIELD(DecodePlanParams, prefix_length)
        .R1_FIELD(DecodePlanParams, member)
        .R1_FIELD(DecodePlanParams, partial_begin)
        .R1_FIELD(DecodePlanParams, item)
        .R1_FIELD(DecodePlanParams, status)
        .R1_FIELD(DecodePlanParams, num_rows)
        .R1_FIELD(DecodePlanParams, num_groups)
        .R1_FIELD(DecodePlanParams, max_suffix_tokens)
        .R1_FIELD(DecodePlanParams, max_prefix_tokens)
        .R1_FIELD(DecodePlanParams, max_items)
        .R1_FIELD(DecodePlanParams, max_partials)
        .R1_FIELD(DecodePlanParams, members_per_item);
    ParamsClass<PagedDecodeParams>(module, "PagedDecodeParams")
        .R1_FIELD(PagedDecodeParams, query)
        .R1_FIELD(PagedDecodeParams, key_pages)
        .R1_FIELD(PagedDecodeParams, value_pages)
        .R1_FIELD(PagedDecodeParams, suffix_pages)
        .R1_FIELD(PagedDecodeParams, prefix_pages)
        .R1_FIELD(PagedDecodeParams, item)
        .R1_FIELD(PagedDecodeParams, status)
        .R1_FIELD(PagedDecodeParams, member)
        .R1_FIELD(PagedDecodeParams, partial_begin)
        .R1_FIELD(PagedDecodeParams, partial_output)
        .R1_FIELD(PagedDecodeParams, partial_lse)
        .R1_FIELD(PagedDecodeParams, query_row_stride)
        .R1_FIELD(PagedDecodeParams, query_head_stride)
        .R1_FIELD(PagedDecodeParams, page_stride)
        .R1_FIELD(PagedDecodeParams, page_head_stride)
        .R1_FIELD(PagedDecodeParams, suffix_table_stride)
        .R1_FIELD(PagedDecodeParams, prefix_table_stride)
        .R1_FIELD(PagedDecodeParams, num_heads)
        .R1_FIELD(PagedDecodeParams, num_kv_heads)
        .R1_FIELD(PagedDecodeParams, head_dim)
        .R1_FIELD(PagedDecodeParams, num_pages)
        .R1_FIELD(PagedDecodeParams, max_items)
        .R1_FIELD(PagedDecodeParams, scale)
        .R1_FIELD(PagedDecodeParams, dtype);
    ParamsClass<AttentionMergeParams>(module, "AttentionMergeParams")
        .R1_FIELD(AttentionMergeParams, partial_output)
        .R1_FIELD(AttentionMergeParams, partial_lse)
        .R1_FIELD(AttentionMergeParams, partial_begin)
        .R1_FIELD(AttentionMergeParams, output)
        .R1_FIELD(AttentionMergeParams, lse)
        .R1_FIELD(AttentionMergeParams, output_row_stride)
        .R1_FIELD(AttentionMergeParams, output_head_stride)
        .R1_FIELD(AttentionMergeParams, num_rows)
        .R1_FIELD(AttentionMergeParams, num_heads)
        .R1_FIELD(AttentionMergeParams, head_dim)
        .R1_FIELD(AttentionMergeParams, dtype);
    ParamsClass<KvCopyParams>(module, "KvCopyParams")
        .R1_FIELD(KvCopyParams, source_key)
        .R1_FIELD(KvCopyParams, source_value)
        .R1_FIELD(KvCopyParams, destination_key)
        .R1_FIELD(KvCopyParams, destination_value)
        .R1_FIELD(KvCopyParams, source_page)
        .R1_FIELD(KvCopyParams, destination_page)
        .R1_FIELD(KvCopyParams, source_layer_stride)
        .R1_FIELD(KvCopyParams, source_page_stride)
        .R1_FIELD(KvCopyParams, source_head_stride)
        .R1_FIELD(KvCopyParams, destination_layer_stride)
        .R1_FIELD(KvCopyParams, destination_page_stride)
        .R1_FIELD(KvCopyParams, destination_head_stride)
        .R1_FIELD(KvCopyParams, tile_bytes)
        .R1_FIELD(KvCopyParams, num_pairs)
        .R1_FIELD(KvCopyParams, num_layers)
        .R1_FIELD(KvCopyParams, num_kv_heads)
        .R1_FIELD(KvCopyParams, num_source_pages)
        .R1_FIELD(KvCopyParams, num_destination_pages);

    module.def("prefix_members", &prefix_members, py::arg("head_dim"), py::arg("gqa"),
               "Sequences that one work item reads a prefix for, by query heads for each KV head.");
    // The interpreter is free while they run: other threads of the program work on.
    const auto released = py::call_guard<py::gil_scoped_release>();
    const auto params = py::arg("params"), num_threads = py::arg("num_threads");
#define R1_BIND_CPU(op) module.def(#op "_cpu", &op##_cpu, params, num_threads, released)
    R1_BIND_CPU(kv_append);
    R1_BIND_CPU(decode_plan);
    R1_BIND_CPU(paged_decode);
    R1_BIND_CPU(attention_merge);
    R1_BIND_CPU(kv_copy);
    R1_BIND_CPU(kv_swap);
#ifdef R1_WITH_CUDA
#define R1_BIND_CUDA(op) module.def(#op "_cuda", &op##_cuda, params, py::arg("stream"))
    R1_BIND_CUDA(kv_append);
    R1_BIND_CUDA(decode_plan);
    R1_BIND_CUDA(paged_decode);
    R1_BIND_CUDA(attention_merge);
    R1_BIND_CUDA(kv_copy);
    R1_BIND_CUDA(kv_swap);
#endif
}

}  // namespace r1
