// What an arena needs of the CUDA driver, loaded when it is first asked for: no toolkit to build, no driver to import.
// Types as in cuda.h; tests/ops/test_arena.py compares them with it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace r1 {

struct DriverLocation {
    int32_t type, id;  // 1: a device, by its number
};
struct DriverAllocation {
    int32_t type;          // 1: pinned
    int32_t handle_types;  // 0: not shared with other processes
    DriverLocation location;
    void* windows;
    unsigned char flags[8];
};
struct DriverAccess {
    DriverLocation location;
    int32_t flags;  // 3: read and write
};

struct Driver {
    using Address = unsigned long long;
    using Allocation = unsigned long long;

    explicit Driver(const std::string& library);  // throws std::runtime_error where there is none
    void check(int status, const char* call) const;

    int (*init)(unsigned flags);
    int (*error_name)(int status, const char** name);
    int (*synchronize)();
    int (*granularity)(size_t* bytes, const DriverAllocation* allocation, int option);
    int (*reserve)(Address* address, size_t bytes, size_t alignment, Address wanted, unsigned long long flags);
    int (*free_address)(Address address, size_t bytes);
    int (*create)(Allocation* handle, size_t bytes, const DriverAllocation* allocation, unsigned long long flags);
    int (*release)(Allocation handle);
    int (*map)(Address address, size_t bytes, size_t offset, Allocation handle, unsigned long long flags);
    int (*unmap)(Address address, size_t bytes);
    int (*set_access)(Address address, size_t bytes, const DriverAccess* access, size_t count);
};

}  // namespace r1
