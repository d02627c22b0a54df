// A range of addresses for good, with memory behind the parts of it that are in use: what points into it, CUDA graphs
// among them, stays valid while the memory is given back between phases.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/errors.h"

namespace r1 {

// Memory: reserves in its constructor, gives all back in its destructor, and has address(), chunk_bytes(),
// commit(first, count) and release(first, count) of chunks; a commit that throws leaves nothing behind.
template <class Memory>
class Arena {
public:
    template <class... Args>
    explicit Arena(int64_t num_bytes, Args... args) : memory_(checked(num_bytes), args...) {
        committed_.resize((num_bytes + chunk_bytes() - 1) / chunk_bytes());
    }

    uintptr_t address() const { return memory_.address(); }
    int64_t chunk_bytes() const { return memory_.chunk_bytes(); }
    int64_t num_bytes() const { return static_cast<int64_t>(committed_.size()) * chunk_bytes(); }
    int64_t committed_bytes() const {
        return std::count(committed_.begin(), committed_.end(), true) * chunk_bytes();
    }

    // Memory for a part that has none, zero or whatever was there before.
    void commit(int64_t offset, int64_t bytes) { change("commit", offset, bytes, true); }
    // The memory of a part is given back, and what was in it is lost.
    void release(int64_t offset, int64_t bytes) { change("release", offset, bytes, false); }

    // Throws unless there is memory behind all of a part.
    void require(int64_t offset, int64_t bytes) const {
        R1_CHECK(offset >= 0 && bytes > 0 && offset <= num_bytes() - bytes, "arena: ", bytes, " bytes from ", offset,
                 " on are not within its ", num_bytes());
        for (int64_t chunk = offset / chunk_bytes(); chunk * chunk_bytes() < offset + bytes; chunk++)
            R1_CHECK(committed_[chunk], "arena: there is no memory at ", chunk * chunk_bytes(), "; commit() it first");
    }

private:
    static int64_t checked(int64_t num_bytes) {
        R1_CHECK(num_bytes > 0 && num_bytes < int64_t{1} << 47, "arena: num_bytes = ", num_bytes,
                 " must be positive and less than 2^47");
        return num_bytes;
    }

    void change(const char* what, int64_t offset, int64_t bytes, bool to) {
        const int64_t chunk = chunk_bytes();
        R1_CHECK(offset >= 0 && bytes > 0 && offset <= num_bytes() - bytes && offset % chunk == 0 && bytes % chunk == 0,
                 "arena: ", what, " of ", bytes, " bytes at ", offset, ": both must be multiples of ", chunk,
                 ", within its ", num_bytes());
        for (int64_t at = offset / chunk; at < (offset + bytes) / chunk; at++)
            R1_CHECK(committed_[at] != to, "arena: ", what, " at ", at * chunk, ", where there is ",
                     to ? "memory already" : "no memory");
        if (to)
            memory_.commit(offset / chunk, bytes / chunk);
        else
            memory_.release(offset / chunk, bytes / chunk);
        std::fill_n(committed_.begin() + offset / chunk, bytes / chunk, to);
    }

    Memory memory_;
    std::vector<bool> committed_;
};

}  // namespace r1
