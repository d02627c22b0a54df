#include "arena/host_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/errors.h"

namespace r1 {
namespace {

// Addresses without memory: at `at`, replacing what is there, or anywhere.
void* reserve(void* at, int64_t bytes) {
    constexpr int KIND = MAP_PRIVATE | MAP_ANON | MAP_NORESERVE;
    void* found = mmap(at, static_cast<size_t>(bytes), PROT_NONE, at ? KIND | MAP_FIXED : KIND, -1, 0);
    if (found == MAP_FAILED) raise<std::runtime_error>("arena: mmap of ", bytes, " bytes failed: ", std::strerror(errno));
    return found;
}

}  // namespace

HostMemory::HostMemory(int64_t num_bytes) : chunk_bytes_(sysconf(_SC_PAGESIZE)) {
    num_bytes_ = (num_bytes + chunk_bytes_ - 1) / chunk_bytes_ * chunk_bytes_;
    address_ = reinterpret_cast<uintptr_t>(reserve(nullptr, num_bytes_));
}

HostMemory::~HostMemory() { munmap(reinterpret_cast<void*>(address_), static_cast<size_t>(num_bytes_)); }

void HostMemory::commit(int64_t first, int64_t count) {
    void* at = reinterpret_cast<void*>(address_ + first * chunk_bytes_);
    if (mprotect(at, static_cast<size_t>(count * chunk_bytes_), PROT_READ | PROT_WRITE) != 0)
        raise<std::runtime_error>("arena: commit of ", count * chunk_bytes_, " bytes failed: ", std::strerror(errno));
}

// Mapped anew: that gives memory back on every system, unlike madvise.
void HostMemory::release(int64_t first, int64_t count) {
    reserve(reinterpret_cast<void*>(address_ + first * chunk_bytes_), count * chunk_bytes_);
}

}  // namespace r1
