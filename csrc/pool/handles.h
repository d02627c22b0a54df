// Things that are asked for by handle: a place, and how often it has been used, so that a stale handle is noticed.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "core/errors.h"
#include "pool/exhausted.h"

namespace r1 {

using Handle = int64_t;  // use << 32 | index
constexpr Handle NO_HANDLE = -1;

inline int32_t index_of(Handle handle) { return static_cast<int32_t>(handle & 0x7FFFFFFF); }

template <class T>
class Handles {
public:
    Handles(const char* kind, int32_t capacity) : kind_(kind), places_(capacity) {
        for (int32_t index = capacity; index-- > 0;) free_.push_back(index);  // low places first
    }

    int32_t num_free() const { return static_cast<int32_t>(free_.size()); }

    // Throws PoolExhausted unless `wanted` places are free.
    void require(const char* op, int64_t wanted) const {
        if (wanted > num_free())
            raise<PoolExhausted>(op, ": ", wanted, " ", kind_, "s are wanted, there is room for ", num_free(),
                                 " more, ", places_.size(), " in all; free some, or make the pool larger");
    }

    Handle add(T thing) {
        require("add", 1);
        const int32_t index = free_.back();
        free_.pop_back();
        Place& place = places_[index];
        place.thing = std::move(thing);
        place.used = true;
        return int64_t{place.use} << 32 | index;
    }

    T& at(const char* op, Handle handle) { return places_[valid(op, handle)].thing; }
    const T& at(const char* op, Handle handle) const { return places_[valid(op, handle)].thing; }
    bool is_alive(Handle handle) const {
        const int64_t index = handle & 0xFFFFFFFF;
        return handle >= 0 && index < static_cast<int64_t>(places_.size()) && places_[index].used &&
               places_[index].use == handle >> 32;
    }

    void remove(const char* op, Handle handle) {
        Place& place = places_[valid(op, handle)];
        place.thing = T{};
        place.used = false;
        place.use = (place.use + 1) & 0x7FFFFFFF;
        free_.push_back(index_of(handle));
    }

    // Calls visit(handle, thing) for everything there is.
    template <class Visit>
    void each(Visit&& visit) const {
        for (size_t index = 0; index < places_.size(); index++)
            if (places_[index].used) visit(int64_t{places_[index].use} << 32 | static_cast<int64_t>(index), places_[index].thing);
    }

private:
    struct Place {
        T thing{};
        int32_t use = 0;
        bool used = false;
    };

    int32_t valid(const char* op, Handle handle) const {
        const int64_t index = handle & 0xFFFFFFFF, use = handle >> 32;
        R1_CHECK(handle >= 0 && index < static_cast<int64_t>(places_.size()) && use <= places_[index].use, op, ": ",
                 kind_, " ", handle, " was never made; pass what the pool returned");
        R1_CHECK(is_alive(handle), op, ": ", kind_, " ", handle, " was freed before; use and free it once");
        return static_cast<int32_t>(index);
    }

    const char* kind_;
    std::vector<Place> places_;
    std::vector<int32_t> free_;
};

}  // namespace r1
