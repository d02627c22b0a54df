// Whole segments to the host and back. A page that a fork shares stays for the other; what returns has pages of its own.
#include "pool/page_pool.h"

namespace r1 {

void PagePool::to_host(Segment& segment, PageMoves& moves) {
    const int32_t kept = pages_for(segment.num_tokens);  // pages that were only reserved hold nothing
    for (size_t place = 0; place < segment.pages.size(); place++) {
        const int32_t page = segment.pages[place];
        device_.release(page);
        if (static_cast<int32_t>(place) >= kept) continue;
        segment.pages[place] = host_.take();
        moves.source.push_back(page);
        moves.destination.push_back(segment.pages[place]);
    }
    segment.pages.resize(kept);
    segment.on_host = true;
}

void PagePool::to_device(Segment& segment, PageMoves& moves) {
    for (int32_t& page : segment.pages) {
        moves.source.push_back(page);
        host_.release(page);
        page = device_.take();
        moves.destination.push_back(page);
    }
    segment.on_host = false;
}

PageMoves PagePool::swap_out(const std::vector<Handle>& handles) {
    check_list("swap_out", handles);
    int64_t wanted = 0;
    for (Handle handle : handles) {
        const Segment& own = sequences_.at("swap_out", handle).own;
        R1_CHECK(!own.on_host, "swap_out: sequence ", handle, " is swapped out already");
        wanted += pages_for(own.num_tokens);
    }
    host_.require("swap_out", wanted);
    PageMoves moves;
    for (Handle handle : handles) {
        Sequence& sequence = sequences_.at("swap_out", handle);
        leave_row(sequence);
        to_host(sequence.own, moves);
        if (sequence.group != NO_HANDLE) groups_.at("swap_out", sequence.group).num_on_host++;
    }
    return moves;
}

PageMoves PagePool::swap_in(const std::vector<Handle>& handles) {
    check_list("swap_in", handles);
    int64_t wanted = 0;
    for (Handle handle : handles) {
        const Segment& own = sequences_.at("swap_in", handle).own;
        R1_CHECK(own.on_host, "swap_in: sequence ", handle, " is on the device already");
        wanted += static_cast<int64_t>(own.pages.size());
    }
    device_.require("swap_in", wanted);
    PageMoves moves;
    for (Handle handle : handles) {
        Sequence& sequence = sequences_.at("swap_in", handle);
        to_device(sequence.own, moves);
        if (sequence.group != NO_HANDLE) groups_.at("swap_in", sequence.group).num_on_host--;
    }
    return moves;
}

PageMoves PagePool::swap_out_group(Handle handle) {
    Group& group = groups_.at("swap_out_group", handle);
    R1_CHECK(!group.prefix.on_host, "swap_out_group: group ", handle, " is swapped out already");
    R1_CHECK(group.num_on_host == group.num_members, "swap_out_group: ", group.num_members - group.num_on_host, " of ",
             group.num_members, " members of group ", handle, " are on the device; swap them out first");
    host_.require("swap_out_group", pages_for(group.prefix.num_tokens));
    prefix_table_.clear(index_of(handle), group.prefix.pages.size());
    params_.prefix_length[index_of(handle)] = 0;
    PageMoves moves;
    to_host(group.prefix, moves);
    return moves;
}

PageMoves PagePool::swap_in_group(Handle handle) {
    Group& group = groups_.at("swap_in_group", handle);
    R1_CHECK(group.prefix.on_host, "swap_in_group: group ", handle, " is on the device already");
    device_.require("swap_in_group", static_cast<int64_t>(group.prefix.pages.size()));
    PageMoves moves;
    to_device(group.prefix, moves);
    show_prefix(handle);
    return moves;
}

}  // namespace r1
