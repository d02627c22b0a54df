// The page tables and lengths that decode_plan and paged_decode read, kept in memory of the caller's.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "core/errors.h"

namespace r1 {

// One table: a row of page numbers for each segment, -1 where there is none.
class PageTable {
public:
    PageTable(int32_t* entries, int32_t num_rows, int32_t row_pages)
        : entries_(entries), row_pages_(row_pages), dirty_(num_rows) {
        for (int64_t entry = 0; entry < int64_t{num_rows} * row_pages; entry++) entries_[entry] = -1;
    }

    int32_t num_rows() const { return static_cast<int32_t>(dirty_.size()); }
    int32_t row_pages() const { return row_pages_; }
    const int32_t* row(int32_t row) const { return entries_ + int64_t{row} * row_pages_; }

    void set(int32_t row, int64_t place, int32_t page) {
        if (!dirty_[row]) dirty_rows_.push_back(row);
        dirty_[row] = 1;
        entries_[int64_t{row} * row_pages_ + place] = page;
    }
    void set_all(int32_t row, const std::vector<int32_t>& pages) {
        for (size_t place = 0; place < pages.size(); place++) set(row, static_cast<int64_t>(place), pages[place]);
    }
    void clear(int32_t row, size_t num_pages) {
        for (size_t place = 0; place < num_pages; place++) set(row, static_cast<int64_t>(place), -1);
    }

    // Rows whose pages changed since the last call.
    std::vector<int32_t> take_dirty_rows() {
        for (int32_t row : dirty_rows_) dirty_[row] = 0;
        return std::exchange(dirty_rows_, {});
    }

private:
    int32_t* entries_;
    int32_t row_pages_;
    std::vector<uint8_t> dirty_;
    std::vector<int32_t> dirty_rows_;
};

}  // namespace r1
