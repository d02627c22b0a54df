#include "arena/device_memory.h"

#include "core/errors.h"

namespace r1 {

DeviceMemory::DeviceMemory(int64_t num_bytes, int64_t chunk_bytes, int32_t device, const std::string& library)
    : driver_(library) {
    R1_CHECK(chunk_bytes > 0, "arena: chunk_bytes = ", chunk_bytes, " must be positive");
    kind_.type = 1;
    kind_.location = {1, device};
    size_t granularity = 0;
    constexpr int RECOMMENDED = 1;
    driver_.check(driver_.granularity(&granularity, &kind_, RECOMMENDED), "cuMemGetAllocationGranularity");
    const auto unit = static_cast<int64_t>(granularity);
    chunk_bytes_ = (chunk_bytes + unit - 1) / unit * unit;
    chunks_.resize((num_bytes + chunk_bytes_ - 1) / chunk_bytes_);
    mapped_.resize(chunks_.size());
    driver_.check(driver_.reserve(&address_, chunks_.size() * chunk_bytes_, 0, 0, 0), "cuMemAddressReserve");
}

DeviceMemory::~DeviceMemory() {
    driver_.synchronize();  // a kernel that still runs may use it; nothing can be done about an error here
    for (size_t chunk = 0; chunk < chunks_.size(); chunk++)
        if (mapped_[chunk]) drop(static_cast<int64_t>(chunk));
    driver_.free_address(address_, chunks_.size() * chunk_bytes_);
}

void DeviceMemory::commit(int64_t first, int64_t count) {
    int64_t chunk = first;
    try {
        for (; chunk < first + count; chunk++) commit_one(chunk);
        const DriverAccess access{kind_.location, 3};
        driver_.check(driver_.set_access(at(first), count * chunk_bytes_, &access, 1), "cuMemSetAccess");
    } catch (...) {
        while (chunk-- > first) drop(chunk);
        throw;
    }
}

void DeviceMemory::commit_one(int64_t chunk) {
    driver_.check(driver_.create(&chunks_[chunk], chunk_bytes_, &kind_, 0), "cuMemCreate");
    const int status = driver_.map(at(chunk), chunk_bytes_, 0, chunks_[chunk], 0);
    if (status != 0) driver_.release(chunks_[chunk]);
    driver_.check(status, "cuMemMap");
    mapped_[chunk] = true;
}

void DeviceMemory::release(int64_t first, int64_t count) {
    for (int64_t chunk = first; chunk < first + count; chunk++) {
        driver_.check(driver_.unmap(at(chunk), chunk_bytes_), "cuMemUnmap");
        mapped_[chunk] = false;
        driver_.check(driver_.release(chunks_[chunk]), "cuMemRelease");
    }
}

void DeviceMemory::drop(int64_t chunk) {
    driver_.unmap(at(chunk), chunk_bytes_);
    driver_.release(chunks_[chunk]);
    mapped_[chunk] = false;
}

}  // namespace r1
