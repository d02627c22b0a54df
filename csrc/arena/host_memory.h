// An arena's memory on the host, on huge pages where the system has them. A part without memory may be neither read nor
// written: the process would be killed.
#pragma once
#include <cstdint>

namespace r1 {

class HostMemory {
public:
    explicit HostMemory(int64_t num_bytes);
    ~HostMemory();
    HostMemory(const HostMemory&) = delete;
    HostMemory& operator=(const HostMemory&) = delete;

    uintptr_t address() const { return address_; }
    int64_t chunk_bytes() const { return chunk_bytes_; }
    void commit(int64_t first, int64_t count);
    void release(int64_t first, int64_t count);

private:
    int64_t chunk_bytes_, num_bytes_;
    uintptr_t address_;
};

}  // namespace r1
