// What the pool holds, and whether its parts agree.
#include <algorithm>

#include "pool/page_pool.h"

namespace r1 {
namespace {

void expect(bool condition, const char* what, int64_t number) {
    if (!condition) raise<std::runtime_error>("page_pool is corrupt: ", what, " (", number, ")");
}

// Every page has the references that were counted, and the others are free.
void check_pages(const Pages& pages, const std::vector<int32_t>& counted) {
    int32_t used = 0;
    for (int32_t page = 0; page < pages.count(); page++) {
        expect(pages.references(page) == counted[page], "references differ from the segments that have page", page);
        used += counted[page] > 0;
    }
    expect(used + pages.num_free() == pages.count(), "free and used pages are not all; free", pages.num_free());
}

}  // namespace

PagePool::SegmentView PagePool::own_segment(Handle handle) const {
    const Segment& own = sequences_.at("own_segment", handle).own;
    return {own.pages, own.num_tokens, own.on_host};
}

PagePool::SegmentView PagePool::prefix_segment(Handle handle) const {
    const Segment& prefix = groups_.at("prefix_segment", handle).prefix;
    return {prefix.pages, prefix.num_tokens, prefix.on_host};
}

void PagePool::count_references(const Segment& segment, std::vector<int32_t>& device,
                                std::vector<int32_t>& host) const {
    std::vector<int32_t> sorted = segment.pages;
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    expect(twice == sorted.end(), "a page is twice in a segment", twice == sorted.end() ? 0 : *twice);
    expect(static_cast<int32_t>(sorted.size()) >= pages_for(segment.num_tokens), "a segment lacks pages for its tokens",
           segment.num_tokens);
    for (int32_t page : segment.pages) (segment.on_host ? host : device)[page]++;
}

void PagePool::check_row(const Sequence& sequence) const {
    const int32_t row = sequence.row, *table = suffix_table_.row(row);
    const auto& pages = sequence.own.pages;
    expect(!sequence.own.on_host, "a sequence on the host has a row", row);
    expect(std::equal(pages.begin(), pages.end(), table), "the table has other pages in row", row);
    expect(std::all_of(table + pages.size(), table + suffix_table_.row_pages(), [](int32_t page) { return page == -1; }),
           "the table has pages beyond the sequence in row", row);
    expect(params_.suffix_length[row] == sequence.own.num_tokens, "the length is another in row", row);
    expect(params_.group[row] == (sequence.group == NO_HANDLE ? -1 : index_of(sequence.group)),
           "the group is another in row", row);
}

void PagePool::check() const {
    std::vector<int32_t> device(device_.count()), host(host_.count()), members(params_.num_groups);
    int32_t bound = 0;
    sequences_.each([&](Handle handle, const Sequence& sequence) {
        count_references(sequence.own, device, host);
        if (sequence.group != NO_HANDLE) members[index_of(sequence.group)]++;
        if (sequence.row < 0) return;
        bound++;
        expect(row_[sequence.row] == handle, "a row belongs to another sequence", sequence.row);
        check_row(sequence);
    });
    expect(bound == std::count_if(row_.begin(), row_.end(), [](Handle handle) { return handle != NO_HANDLE; }),
           "rows belong to sequences that are gone; sequences in rows", bound);
    groups_.each([&](Handle handle, const Group& group) {
        count_references(group.prefix, device, host);
        const int32_t row = index_of(handle);
        expect(members[row] == group.num_members, "members are miscounted of group", handle);
        expect(group.cached || group.num_members > 0, "nobody needs group", handle);
        if (group.prefix.on_host) return;
        expect(std::equal(group.prefix.pages.begin(), group.prefix.pages.end(), prefix_table_.row(row)),
               "the table has other pages for group", handle);
        expect(params_.prefix_length[row] == group.prefix.num_tokens, "the length is another of group", handle);
    });
    check_pages(device_, device);
    check_pages(host_, host);
}

}  // namespace r1
