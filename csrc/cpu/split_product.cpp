#include "ops/split_product.h"

#include <memory>

#include "core/errors.h"
#include "cpu/per_isa/entries.h"
#include "cpu/threads.h"

namespace r1 {

void split_product_cpu(const SplitProductParams& p, int num_threads) {
    R1_CHECK(p.depth > 0 && p.depth % 2 == 0, "split_product: depth = ", p.depth, " must be even and positive");
    const auto run = R1_ENTRY(split_columns);
    const int64_t blocks = (p.num_columns + SPLIT_COLUMNS - 1) / SPLIT_COLUMNS;
    const int64_t grain = 1 + (blocks - 1) / (8 * num_threads);  // some for each thread, each with a scratch of its own
    run_ranges(blocks, grain, num_threads, [&](int64_t begin, int64_t end) {
        const size_t numbers = static_cast<size_t>(split_product_scratch(p));
        const std::unique_ptr<uint32_t[]> memory(new uint32_t[numbers + 16]);
        void* aligned = memory.get();
        size_t space = (numbers + 16) * sizeof(uint32_t);
        std::align(64, numbers * sizeof(uint32_t), aligned, space);  // so that no register crosses a cache line
        for (int64_t block = begin; block < end; block++) run(p, block, static_cast<uint32_t*>(aligned));
    });
}

}  // namespace r1
