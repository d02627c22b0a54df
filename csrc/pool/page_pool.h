// Who has which page: groups that share a prompt, sequences that continue it, and their pages on the device or swapped
// out to the host. Bookkeeping alone: the caller moves what is in the pages. Not for several threads at once.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "core/geometry.h"
#include "pool/handles.h"
#include "pool/pages.h"
#include "pool/tables.h"

namespace r1 {

struct PagePoolParams {
    int32_t* suffix_pages = nullptr;   // [num_rows, suffix_table_pages] own pages of the sequence of a row
    int32_t* prefix_pages = nullptr;   // [num_groups, prefix_table_pages]
    int32_t* suffix_length = nullptr;  // [num_rows] tokens; 0 where the row is empty
    int32_t* group = nullptr;          // [num_rows] row of prefix_pages; -1: none
    int32_t* prefix_length = nullptr;  // [num_groups] tokens
    int32_t num_pages = 0, num_host_pages = 0;
    int32_t num_sequences = 0, num_rows = 0, num_groups = 0;
    int32_t suffix_table_pages = 0, prefix_table_pages = 0;
};

// What is in `source` must get to `destination`, in the order of the list, before anything else is written.
struct PageMoves {
    std::vector<int32_t> source, destination;
};

class PagePool {
public:
    explicit PagePool(const PagePoolParams& params);

    // A prompt of its own, its pages reserved. It lives while it is cached or has members.
    Handle add_group(int64_t num_tokens);
    void release_group(Handle group);  // no longer cached
    int32_t drop_prefixes();           // no group is cached; how many were

    std::vector<Handle> add_sequences(Handle group, int64_t count);
    Handle fork(Handle sequence);  // the same tokens; whoever writes first gets a copy of the page
    void free_sequences(const std::vector<Handle>& sequences);

    // Pages for `num_tokens` more tokens of each; those to be written are nobody else's afterwards.
    PageMoves reserve(const std::vector<Handle>& sequences, const std::vector<int64_t>& num_tokens);
    // Tokens that have been written to reserved pages.
    void advance(const std::vector<Handle>& sequences, const std::vector<int64_t>& num_tokens);
    void truncate(Handle sequence, int64_t num_tokens);  // back to this length; keeps the pages

    // Slots (page * PAGE_TOKENS + place) of the next tokens of each sequence, in order.
    void next_slots(const std::vector<Handle>& sequences, const std::vector<int64_t>& num_tokens, int32_t* slots) const;
    void prefix_slots(Handle group, int64_t begin, int64_t num_tokens, int32_t* slots) const;

    void bind(Handle sequence, int64_t row);  // its tables are in this row from now on
    void unbind(Handle sequence);

    PageMoves swap_out(const std::vector<Handle>& sequences);  // device -> host
    PageMoves swap_in(const std::vector<Handle>& sequences);   // host -> device
    PageMoves swap_out_group(Handle group);                    // when every member is on the host
    PageMoves swap_in_group(Handle group);

    struct SegmentView {
        std::vector<int32_t> pages;
        int32_t num_tokens;
        bool on_host;
    };
    SegmentView own_segment(Handle sequence) const;
    SegmentView prefix_segment(Handle group) const;
    Handle group_of(Handle sequence) const { return sequences_.at("group_of", sequence).group; }
    bool has_sequence(Handle sequence) const { return sequences_.is_alive(sequence); }
    bool has_group(Handle group) const { return groups_.is_alive(group); }
    const Pages& device_pages() const { return device_; }
    const Pages& host_pages() const { return host_; }
    std::vector<int32_t> take_dirty_suffix_rows() { return suffix_table_.take_dirty_rows(); }
    std::vector<int32_t> take_dirty_prefix_rows() { return prefix_table_.take_dirty_rows(); }

    void check() const;  // throws std::runtime_error where counts, lists and tables disagree

private:
    struct Segment {
        std::vector<int32_t> pages;
        int32_t num_tokens = 0;
        bool on_host = false;
    };
    struct Sequence {
        Segment own;
        Handle group = NO_HANDLE;
        int32_t row = -1;
        uint64_t listed = 0;  // the call that lists it
    };
    struct Group {
        Segment prefix;
        int32_t num_members = 0, num_on_host = 0;  // sequences
        bool cached = true;
    };

    static int32_t pages_for(int64_t num_tokens) {
        return static_cast<int32_t>((num_tokens + PAGE_TOKENS - 1) / PAGE_TOKENS);
    }
    void check_list(const char* op, const std::vector<Handle>& sequences);
    void check_counts(const char* op, const std::vector<Handle>& sequences, const std::vector<int64_t>& counts) const;
    int64_t pages_wanted(const std::vector<Handle>& sequences, const std::vector<int64_t>& counts);
    int32_t check_own(const char* op, Handle sequence, int32_t place) const;
    void grow(Sequence& sequence, int64_t num_tokens, PageMoves& copies);
    void release_pages(Segment& segment);
    void free_unused(Handle group);
    void leave_row(Sequence& sequence);
    void show_prefix(Handle group);
    void to_host(Segment& segment, PageMoves& moves);
    void to_device(Segment& segment, PageMoves& moves);
    void count_references(const Segment& segment, std::vector<int32_t>& device, std::vector<int32_t>& host) const;
    void check_row(const Sequence& sequence) const;

    PagePoolParams params_;
    Pages device_, host_;
    Handles<Sequence> sequences_;
    Handles<Group> groups_;
    PageTable suffix_table_, prefix_table_;
    std::vector<Handle> row_;  // the sequence of each row
    uint64_t num_calls_ = 0;
};

}  // namespace r1
