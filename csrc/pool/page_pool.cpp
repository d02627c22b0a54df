#include "pool/page_pool.h"

#include <algorithm>
#include <limits>
#include <unordered_map>

namespace r1 {
namespace {

const PagePoolParams& checked(const PagePoolParams& p) {
    constexpr int32_t MOST_PAGES = std::numeric_limits<int32_t>::max() / PAGE_TOKENS;  // a slot is an int32
    R1_CHECK(p.num_pages > 0 && p.num_pages <= MOST_PAGES, "page_pool: num_pages = ", p.num_pages, " must be 1 to ",
             MOST_PAGES);
    R1_CHECK(p.num_host_pages >= 0, "page_pool: num_host_pages = ", p.num_host_pages, " must not be negative");
    R1_CHECK(p.num_sequences > 0 && p.num_rows > 0 && p.num_groups >= 0, "page_pool: num_sequences = ",
             p.num_sequences, " and num_rows = ", p.num_rows, " must be positive, num_groups = ", p.num_groups,
             " not negative");
    R1_CHECK(p.suffix_table_pages > 0 && p.prefix_table_pages >= 0, "page_pool: suffix_table_pages = ",
             p.suffix_table_pages, " must be positive, prefix_table_pages = ", p.prefix_table_pages, " not negative");
    R1_CHECK(p.suffix_pages && p.suffix_length && p.group, "page_pool: there must be tables for the rows");
    R1_CHECK(p.num_groups == 0 || p.prefix_length, "page_pool: there must be tables for the groups");
    return p;
}

}  // namespace

PagePool::PagePool(const PagePoolParams& params)
    : params_(checked(params)),
      device_("device", params.num_pages),
      host_("host", params.num_host_pages),
      sequences_("sequence", params.num_sequences),
      groups_("group", params.num_groups),
      suffix_table_(params.suffix_pages, params.num_rows, params.suffix_table_pages),
      prefix_table_(params.prefix_pages, params.num_groups, params.prefix_table_pages),
      row_(params.num_rows, NO_HANDLE) {
    std::fill_n(params_.suffix_length, params_.num_rows, 0);
    std::fill_n(params_.group, params_.num_rows, -1);
    std::fill_n(params_.prefix_length, params_.num_groups, 0);
}

// Each sequence is alive and is there once.
void PagePool::check_list(const char* op, const std::vector<Handle>& sequences) {
    num_calls_++;
    for (Handle handle : sequences) {
        Sequence& sequence = sequences_.at(op, handle);
        R1_CHECK(sequence.listed != num_calls_, op, ": sequence ", handle, " is listed twice; list it once");
        sequence.listed = num_calls_;
    }
}

// Token counts to add, one for each sequence: what is on the device and what its table has room for.
void PagePool::check_counts(const char* op, const std::vector<Handle>& sequences,
                            const std::vector<int64_t>& counts) const {
    R1_CHECK(counts.size() == sequences.size(), op, ": ", counts.size(), " token counts for ", sequences.size(),
             " sequences; give one for each");
    for (size_t i = 0; i < sequences.size(); i++) {
        const Segment& own = sequences_.at(op, sequences[i]).own;
        const int64_t most = int64_t{params_.suffix_table_pages} * PAGE_TOKENS;
        R1_CHECK(!own.on_host, op, ": sequence ", sequences[i], " is swapped out; swap it in first");
        R1_CHECK(counts[i] >= 0 && counts[i] <= most - own.num_tokens, op, ": num_tokens = ", counts[i],
                 " for sequence ", sequences[i], " of ", own.num_tokens, " tokens must be 0 to ",
                 most - own.num_tokens, ": a row of the page table has room for ", most);
    }
}

Handle PagePool::add_group(int64_t num_tokens) {
    const int64_t most = int64_t{params_.prefix_table_pages} * PAGE_TOKENS;
    R1_CHECK(num_tokens >= 0 && num_tokens <= most, "add_group: num_tokens = ", num_tokens, " must be 0 to ", most,
             ", what a row of the prefix table has room for");
    groups_.require("add_group", 1);
    device_.require("add_group", pages_for(num_tokens));
    Group group;
    group.prefix.num_tokens = static_cast<int32_t>(num_tokens);
    for (int32_t place = 0; place < pages_for(num_tokens); place++) group.prefix.pages.push_back(device_.take());
    const Handle handle = groups_.add(std::move(group));
    show_prefix(handle);
    return handle;
}

void PagePool::show_prefix(Handle handle) {
    const Segment& prefix = groups_.at("page_pool", handle).prefix;
    prefix_table_.set_all(index_of(handle), prefix.pages);
    params_.prefix_length[index_of(handle)] = prefix.num_tokens;
}

void PagePool::release_group(Handle handle) {
    Group& group = groups_.at("release_group", handle);
    R1_CHECK(group.cached, "release_group: group ", handle, " was released before; it lives on for its members");
    group.cached = false;
    free_unused(handle);
}

int32_t PagePool::drop_prefixes() {
    std::vector<Handle> cached;
    groups_.each([&](Handle handle, const Group& group) {
        if (group.cached) cached.push_back(handle);
    });
    for (Handle handle : cached) release_group(handle);
    return static_cast<int32_t>(cached.size());
}

void PagePool::free_unused(Handle handle) {
    Group& group = groups_.at("page_pool", handle);
    if (group.cached || group.num_members > 0) return;
    if (!group.prefix.on_host) prefix_table_.clear(index_of(handle), group.prefix.pages.size());
    params_.prefix_length[index_of(handle)] = 0;
    release_pages(group.prefix);
    groups_.remove("page_pool", handle);
}

void PagePool::release_pages(Segment& segment) {
    for (int32_t page : segment.pages) (segment.on_host ? host_ : device_).release(page);
    segment.pages.clear();
}

std::vector<Handle> PagePool::add_sequences(Handle group, int64_t count) {
    R1_CHECK(count >= 0, "add_sequences: count = ", count, " must not be negative");
    if (group != NO_HANDLE)
        R1_CHECK(groups_.at("add_sequences", group).cached, "add_sequences: group ", group,
                 " was released, its prefix may be out of date; add_group() a new one");
    sequences_.require("add_sequences", count);
    Sequence fresh;
    fresh.group = group;
    std::vector<Handle> handles;
    for (int64_t i = 0; i < count; i++) handles.push_back(sequences_.add(fresh));
    if (group != NO_HANDLE) groups_.at("add_sequences", group).num_members += static_cast<int32_t>(count);
    return handles;
}

Handle PagePool::fork(Handle handle) {
    const Sequence& parent = sequences_.at("fork", handle);
    R1_CHECK(!parent.own.on_host, "fork: sequence ", handle, " is swapped out; swap it in first");
    sequences_.require("fork", 1);
    Sequence child;
    child.group = parent.group;
    child.own.num_tokens = parent.own.num_tokens;
    child.own.pages.assign(parent.own.pages.begin(), parent.own.pages.begin() + pages_for(parent.own.num_tokens));
    for (int32_t page : child.own.pages) device_.retain(page);
    if (child.group != NO_HANDLE) groups_.at("fork", child.group).num_members++;
    return sequences_.add(std::move(child));
}

void PagePool::free_sequences(const std::vector<Handle>& handles) {
    check_list("free_sequences", handles);
    for (Handle handle : handles) {
        Sequence& sequence = sequences_.at("free_sequences", handle);
        leave_row(sequence);
        const Handle group = sequence.group;
        if (group != NO_HANDLE) {
            groups_.at("free_sequences", group).num_members--;
            groups_.at("free_sequences", group).num_on_host -= sequence.own.on_host;
        }
        release_pages(sequence.own);
        sequences_.remove("free_sequences", handle);
        if (group != NO_HANDLE) free_unused(group);
    }
}

// How many pages reserve() takes. Makes room in the lists, so that nothing fails once pages are taken.
int64_t PagePool::pages_wanted(const std::vector<Handle>& sequences, const std::vector<int64_t>& counts) {
    int64_t wanted = 0;
    std::unordered_map<int32_t, int32_t> left;  // references that the sequences before this one give up
    for (size_t i = 0; i < sequences.size(); i++) {
        Segment& own = sequences_.at("reserve", sequences[i]).own;
        const int32_t end = pages_for(own.num_tokens + counts[i]);
        const auto have = static_cast<int32_t>(own.pages.size());
        wanted += std::max(0, end - have);
        if (end > static_cast<int32_t>(own.pages.capacity())) own.pages.reserve(std::max(end, 2 * have));
        for (int32_t place = counts[i] ? own.num_tokens / PAGE_TOKENS : end; place < std::min(end, have); place++)
            if (const int32_t page = own.pages[place]; device_.references(page) > 1)
                if (device_.references(page) - left[page] > 1) wanted++, left[page]++;
    }
    return wanted;
}

void PagePool::grow(Sequence& sequence, int64_t num_tokens, PageMoves& copies) {
    Segment& own = sequence.own;
    const int32_t end = pages_for(own.num_tokens + num_tokens);
    for (int32_t place = num_tokens ? own.num_tokens / PAGE_TOKENS : end; place < end; place++) {
        if (place < static_cast<int32_t>(own.pages.size())) {
            const int32_t shared = own.pages[place];
            if (device_.references(shared) == 1) continue;
            own.pages[place] = device_.take();
            device_.release(shared);
            if (place * PAGE_TOKENS < own.num_tokens) {  // later pages hold no tokens
                copies.source.push_back(shared);
                copies.destination.push_back(own.pages[place]);
            }
        } else {
            own.pages.push_back(device_.take());
        }
        if (sequence.row >= 0) suffix_table_.set(sequence.row, place, own.pages[place]);
    }
}

PageMoves PagePool::reserve(const std::vector<Handle>& sequences, const std::vector<int64_t>& num_tokens) {
    check_list("reserve", sequences);
    check_counts("reserve", sequences, num_tokens);
    device_.require("reserve", pages_wanted(sequences, num_tokens));
    PageMoves copies;
    for (size_t i = 0; i < sequences.size(); i++) grow(sequences_.at("reserve", sequences[i]), num_tokens[i], copies);
    return copies;
}

// The page at this place of a sequence, which nobody else has.
int32_t PagePool::check_own(const char* op, Handle handle, int32_t place) const {
    const auto& pages = sequences_.at(op, handle).own.pages;
    R1_CHECK(place < static_cast<int32_t>(pages.size()) && device_.references(pages[place]) == 1, op, ": sequence ",
             handle, " has no page of its own for token ", int64_t{place} * PAGE_TOKENS, " and on; reserve() first");
    return pages[place];
}

void PagePool::advance(const std::vector<Handle>& sequences, const std::vector<int64_t>& num_tokens) {
    check_list("advance", sequences);
    check_counts("advance", sequences, num_tokens);
    for (size_t i = 0; i < sequences.size(); i++) {
        const Segment& own = sequences_.at("advance", sequences[i]).own;
        const int32_t end = pages_for(own.num_tokens + num_tokens[i]);
        for (int32_t place = num_tokens[i] ? own.num_tokens / PAGE_TOKENS : end; place < end; place++)
            check_own("advance", sequences[i], place);
    }
    for (size_t i = 0; i < sequences.size(); i++) {
        Sequence& sequence = sequences_.at("advance", sequences[i]);
        sequence.own.num_tokens += static_cast<int32_t>(num_tokens[i]);
        if (sequence.row >= 0) params_.suffix_length[sequence.row] = sequence.own.num_tokens;
    }
}

void PagePool::truncate(Handle handle, int64_t num_tokens) {
    Sequence& sequence = sequences_.at("truncate", handle);
    R1_CHECK(num_tokens >= 0 && num_tokens <= sequence.own.num_tokens, "truncate: num_tokens = ", num_tokens,
             " must be 0 to ", sequence.own.num_tokens, ", the length of sequence ", handle);
    sequence.own.num_tokens = static_cast<int32_t>(num_tokens);
    if (sequence.row >= 0) params_.suffix_length[sequence.row] = sequence.own.num_tokens;
}

void PagePool::next_slots(const std::vector<Handle>& sequences, const std::vector<int64_t>& num_tokens,
                          int32_t* slots) const {
    check_counts("next_slots", sequences, num_tokens);
    for (size_t i = 0; i < sequences.size(); i++) {
        const Segment& own = sequences_.at("next_slots", sequences[i]).own;
        for (int32_t token = own.num_tokens; token < own.num_tokens + num_tokens[i]; token++) {
            const int32_t page = check_own("next_slots", sequences[i], token / PAGE_TOKENS);
            *slots++ = page * PAGE_TOKENS + token % PAGE_TOKENS;
        }
    }
}

void PagePool::prefix_slots(Handle group, int64_t begin, int64_t num_tokens, int32_t* slots) const {
    const Segment& prefix = groups_.at("prefix_slots", group).prefix;
    R1_CHECK(!prefix.on_host, "prefix_slots: group ", group, " is swapped out; swap_in_group() first");
    R1_CHECK(begin >= 0 && num_tokens >= 0 && begin <= prefix.num_tokens - num_tokens, "prefix_slots: ",
             num_tokens, " tokens from ", begin, " on are not within the ", prefix.num_tokens, " of group ", group);
    for (int64_t token = begin; token < begin + num_tokens; token++)
        *slots++ = prefix.pages[token / PAGE_TOKENS] * PAGE_TOKENS + static_cast<int32_t>(token % PAGE_TOKENS);
}

void PagePool::bind(Handle handle, int64_t row) {
    Sequence& sequence = sequences_.at("bind", handle);
    R1_CHECK(row >= 0 && row < params_.num_rows, "bind: row = ", row, " must be 0 to ", params_.num_rows - 1);
    R1_CHECK(sequence.row < 0, "bind: sequence ", handle, " is in row ", sequence.row, "; unbind() it first");
    R1_CHECK(row_[row] == NO_HANDLE, "bind: row ", row, " has sequence ", row_[row], "; unbind() that first");
    R1_CHECK(!sequence.own.on_host, "bind: sequence ", handle, " is swapped out; swap it in first");
    R1_CHECK(sequence.group == NO_HANDLE || !groups_.at("bind", sequence.group).prefix.on_host, "bind: group ",
             sequence.group, " is swapped out; swap_in_group() first");
    sequence.row = static_cast<int32_t>(row);
    row_[row] = handle;
    suffix_table_.set_all(sequence.row, sequence.own.pages);
    params_.suffix_length[row] = sequence.own.num_tokens;
    params_.group[row] = sequence.group == NO_HANDLE ? -1 : index_of(sequence.group);
}

void PagePool::unbind(Handle handle) {
    Sequence& sequence = sequences_.at("unbind", handle);
    R1_CHECK(sequence.row >= 0, "unbind: sequence ", handle, " is in no row; bind() it first");
    leave_row(sequence);
}

void PagePool::leave_row(Sequence& sequence) {
    if (sequence.row < 0) return;
    suffix_table_.clear(sequence.row, sequence.own.pages.size());
    params_.suffix_length[sequence.row] = 0;
    params_.group[sequence.row] = -1;
    row_[sequence.row] = NO_HANDLE;
    sequence.row = -1;
}

}  // namespace r1
