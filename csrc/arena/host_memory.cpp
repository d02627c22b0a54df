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

void free_addresses(uintptr_t at, uintptr_t bytes) {
    if (bytes) munmap(reinterpret_cast<void*>(at), bytes);
}

// Addresses that begin on a huge page.
uintptr_t reserve_aligned(int64_t bytes) {
    constexpr uintptr_t HUGE_PAGE = 2 << 20;  // of x86-64, and of Arm with pages of 4 KiB
    const auto found = reinterpret_cast<uintptr_t>(reserve(nullptr, bytes + static_cast<int64_t>(HUGE_PAGE)));
    const uintptr_t address = (found + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    free_addresses(found, address - found);
    free_addresses(address + static_cast<uintptr_t>(bytes), found + HUGE_PAGE - address);
    return address;
}

}  // namespace

HostMemory::HostMemory(int64_t num_bytes) : chunk_bytes_(sysconf(_SC_PAGESIZE)) {
    num_bytes_ = (num_bytes + chunk_bytes_ - 1) / chunk_bytes_ * chunk_bytes_;
    address_ = reserve_aligned(num_bytes_);
}

HostMemory::~HostMemory() { munmap(reinterpret_cast<void*>(address_), static_cast<size_t>(num_bytes_)); }

void HostMemory::commit(int64_t first, int64_t count) {
    void* at = reinterpret_cast<void*>(address_ + first * chunk_bytes_);
    if (mprotect(at, static_cast<size_t>(count * chunk_bytes_), PROT_READ | PROT_WRITE) != 0)
        raise<std::runtime_error>("arena: commit of ", count * chunk_bytes_, " bytes failed: ", std::strerror(errno));
#ifdef MADV_HUGEPAGE
    // A page of the cache is a few KiB, anywhere: on small pages nearly each one misses the TLB. A system may refuse.
    madvise(at, static_cast<size_t>(count * chunk_bytes_), MADV_HUGEPAGE);
#endif
}

// Mapped anew: that gives memory back on every system, unlike madvise.
void HostMemory::release(int64_t first, int64_t count) {
    reserve(reinterpret_cast<void*>(address_ + first * chunk_bytes_), count * chunk_bytes_);
}

}  // namespace r1
