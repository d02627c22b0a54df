// The part of the CUDA driver that an arena calls, on the host's memory, with its rules: parts are multiples of the
// granularity, addresses are mapped once, memory has no access until it is given, and there is only so much of it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <map>
#include <string>

namespace {

constexpr size_t GRANULARITY = 2 << 20;
constexpr int INVALID = 1, OUT_OF_MEMORY = 2;
struct Allocation {
    int file;
    size_t bytes;
    int mappings;
    bool released;
};
std::map<unsigned long long, Allocation> allocations;
std::map<unsigned long long, std::pair<size_t, unsigned long long>> mapped;  // address -> bytes, allocation
std::map<unsigned long long, size_t> reserved;
unsigned long long next_handle = 1;
long long memory_left = 1LL << 40;
int fail_access = 0;

void forget(unsigned long long handle) {
    Allocation& a = allocations.at(handle);
    if (a.mappings > 0 || !a.released) return;
    close(a.file);
    memory_left += static_cast<long long>(a.bytes);
    allocations.erase(handle);
}

}  // namespace

extern "C" {
void fake_limit(long long bytes) { memory_left = bytes; }
void fake_fail_access(int fail) { fail_access = fail; }
long long fake_left() { return memory_left; }
int fake_num_allocations() { return static_cast<int>(allocations.size()); }
int fake_num_reserved() { return static_cast<int>(reserved.size()); }

int cuInit(unsigned flags) { return flags ? INVALID : 0; }
int cuCtxSynchronize() { return 0; }
int cuGetErrorName(int status, const char** name) {
    *name = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_INVALID_VALUE";
    return 0;
}
int cuMemGetAllocationGranularity(size_t* bytes, const int* kind, int option) {
    *bytes = GRANULARITY;
    return kind[0] == 1 && kind[2] == 1 && option == 1 ? 0 : INVALID;
}
int cuMemAddressReserve(unsigned long long* address, size_t bytes, size_t, unsigned long long, unsigned long long) {
    if (bytes % GRANULARITY) return INVALID;
    void* at = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    reserved[*address = reinterpret_cast<unsigned long long>(at)] = bytes;
    return 0;
}
int cuMemAddressFree(unsigned long long address, size_t bytes) {
    if (!reserved.count(address) || reserved[address] != bytes || !mapped.empty()) return INVALID;
    reserved.erase(address);
    return munmap(reinterpret_cast<void*>(address), bytes) ? INVALID : 0;
}
int cuMemCreate(unsigned long long* handle, size_t bytes, const int* kind, unsigned long long) {
    if (bytes % GRANULARITY || kind[0] != 1) return INVALID;
    if (static_cast<long long>(bytes) > memory_left) return OUT_OF_MEMORY;
    const int file = memfd_create("fake", 0);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes))) return OUT_OF_MEMORY;
    memory_left -= static_cast<long long>(bytes);
    allocations[*handle = next_handle++] = {file, bytes, 0, false};
    return 0;
}
int cuMemRelease(unsigned long long handle) {
    if (!allocations.count(handle) || allocations[handle].released) return INVALID;
    allocations[handle].released = true;
    forget(handle);
    return 0;
}
int cuMemMap(unsigned long long address, size_t bytes, size_t offset, unsigned long long handle, unsigned long long) {
    if (mapped.count(address) || offset || !allocations.count(handle) || allocations[handle].bytes != bytes) return INVALID;
    void* at = reinterpret_cast<void*>(address);
    if (mmap(at, bytes, PROT_NONE, MAP_SHARED | MAP_FIXED, allocations[handle].file, 0) == MAP_FAILED) return INVALID;
    allocations[handle].mappings++;
    mapped[address] = {bytes, handle};
    return 0;
}
int cuMemUnmap(unsigned long long address, size_t bytes) {
    if (!mapped.count(address) || mapped[address].first != bytes) return INVALID;
    void* at = reinterpret_cast<void*>(address);
    mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE | MAP_FIXED, -1, 0);
    const unsigned long long handle = mapped[address].second;
    mapped.erase(address);
    allocations[handle].mappings--;
    forget(handle);
    return 0;
}
int cuMemSetAccess(unsigned long long address, size_t bytes, const int* access, size_t count) {
    if (fail_access || access[0] != 1 || access[2] != 3 || count != 1) return INVALID;
    for (unsigned long long at = address; at < address + bytes; at += mapped[at].first)
        if (!mapped.count(at)) return INVALID;
    return mprotect(reinterpret_cast<void*>(address), bytes, PROT_READ | PROT_WRITE) ? INVALID : 0;
}
}
