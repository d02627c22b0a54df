// An arena's memory on a GPU: one allocation of the driver for each chunk.
#pragma once
#include <string>
#include <vector>

#include "arena/driver.h"

namespace r1 {

class DeviceMemory {
public:
    // Chunks of at least `chunk_bytes`: few are quicker to map. `library` is the driver's.
    DeviceMemory(int64_t num_bytes, int64_t chunk_bytes, int32_t device, const std::string& library);
    ~DeviceMemory();
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    uintptr_t address() const { return static_cast<uintptr_t>(address_); }
    int64_t chunk_bytes() const { return chunk_bytes_; }
    void commit(int64_t first, int64_t count);
    void release(int64_t first, int64_t count);  // the caller has waited for the device

private:
    Driver::Address at(int64_t chunk) const { return address_ + static_cast<Driver::Address>(chunk * chunk_bytes_); }
    void commit_one(int64_t chunk);
    void drop(int64_t chunk);

    Driver driver_;
    DriverAllocation kind_{};
    int64_t chunk_bytes_ = 0;
    Driver::Address address_ = 0;
    std::vector<Driver::Allocation> chunks_;
    std::vector<bool> mapped_;
};

}  // namespace r1
