// The pages of one memory by number: which are free, and how many segments have each of the others.
#pragma once
#include <cstdint>
#include <vector>

#include "core/errors.h"
#include "pool/exhausted.h"

namespace r1 {

class Pages {
public:
    Pages(const char* kind, int32_t count) : kind_(kind), references_(count) {
        for (int32_t page = count; page-- > 0;) free_.push_back(page);  // low numbers first
    }

    int32_t count() const { return static_cast<int32_t>(references_.size()); }
    int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

    // Throws PoolExhausted unless `wanted` pages are free.
    void require(const char* op, int64_t wanted) const {
        if (wanted > num_free())
            raise<PoolExhausted>(op, ": ", wanted, " ", kind_, " pages are wanted, ", num_free(), " of ", count(),
                                 " are free; free or swap out sequences, drop cached prefixes, or make the pool larger");
    }

    // A free page, with one reference. The caller has asked require().
    int32_t take() {
        require("take", 1);
        const int32_t page = free_.back();
        free_.pop_back();
        references_[page] = 1;
        return page;
    }

    void retain(int32_t page) { references_[used(page)]++; }

    void release(int32_t page) {
        if (--references_[used(page)] == 0) free_.push_back(page);  // no allocation: it has room for all pages
    }

    int32_t references(int32_t page) const {
        R1_CHECK(page >= 0 && page < count(), "page_pool: ", kind_, " page ", page, " is not one of the ", count());
        return references_[page];
    }

private:
    int32_t used(int32_t page) const {
        if (references(page) == 0) raise<std::runtime_error>("page_pool: ", kind_, " page ", page, " is free already");
        return page;
    }

    const char* kind_;
    std::vector<int32_t> references_, free_;
};

}  // namespace r1
