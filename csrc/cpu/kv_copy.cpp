#include "ops/kv_copy.h"

#include <cstring>
#include <vector>

#include "core/errors.h"
#include "cpu/threads.h"

namespace r1 {

void check_moves(const char* op, const KvCopyParams& p) {
    std::vector<bool> written(p.num_destination_pages);
    for (int32_t pair = 0; pair < p.num_pairs; pair++) {
        const int32_t source = p.source_page[pair], destination = p.destination_page[pair];
        R1_CHECK(source >= 0 && source < p.num_source_pages, op, ": source[", pair, "] = ", source,
                 " is not one of the ", p.num_source_pages, " pages");
        R1_CHECK(destination >= 0 && destination < p.num_destination_pages, op, ": destination[", pair, "] = ",
                 destination, " is not one of the ", p.num_destination_pages, " pages");
        R1_CHECK(!written[destination], op, ": destination[", pair, "] = ", destination,
                 " is listed twice; a page can have one source");
        written[destination] = true;
    }
    if (p.source_key != p.destination_key) return;
    for (int32_t pair = 0; pair < p.num_pairs; pair++)
        R1_CHECK(!written[p.source_page[pair]], op, ": page ", p.source_page[pair],
                 " is a source and a destination; copy in two calls");
}

namespace {

void copy_tiles(const char* op, const KvCopyParams& p, int num_threads) {
    check_moves(op, p);
    const auto copy = [&](const void* from, void* to, int64_t layer, int64_t pair, int64_t head) {
        std::memcpy(static_cast<char*>(to) + layer * p.destination_layer_stride +
                        p.destination_page[pair] * p.destination_page_stride + head * p.destination_head_stride,
                    static_cast<const char*>(from) + layer * p.source_layer_stride +
                        p.source_page[pair] * p.source_page_stride + head * p.source_head_stride,
                    static_cast<size_t>(p.tile_bytes));
    };
    // Pages of one layer are nearer to each other than layers of one page.
    run_tasks(int64_t{p.num_layers} * p.num_pairs, num_threads, [&](int64_t number) {
        const int64_t layer = number / p.num_pairs, pair = number % p.num_pairs;
        for (int64_t head = 0; head < p.num_kv_heads; head++) {
            copy(p.source_key, p.destination_key, layer, pair, head);
            copy(p.source_value, p.destination_value, layer, pair, head);
        }
    });
}

}  // namespace

void kv_copy_cpu(const KvCopyParams& params, int num_threads) { copy_tiles("kv_copy", params, num_threads); }
void kv_swap_cpu(const KvCopyParams& params, int num_threads) { copy_tiles("kv_swap", params, num_threads); }

}  // namespace r1
