#include "arena/driver.h"

#include <dlfcn.h>

#include <type_traits>

#include "core/errors.h"

namespace r1 {

Driver::Driver(const std::string& library) {
    void* handle = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!handle)
        raise<std::runtime_error>("arena: there is no NVIDIA driver here (", dlerror(), "); use device=\"cpu\"");
    const auto find = [&](auto& function, const char* name) {
        void* symbol = dlsym(handle, name);
        if (!symbol)
            raise<std::runtime_error>("arena: ", library, " has no ", name, "; it needs a driver of CUDA 11.0 or later");
        function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(symbol);
    };
    find(init, "cuInit");
    find(error_name, "cuGetErrorName");
    find(synchronize, "cuCtxSynchronize");
    find(granularity, "cuMemGetAllocationGranularity");
    find(reserve, "cuMemAddressReserve");
    find(free_address, "cuMemAddressFree");
    find(create, "cuMemCreate");
    find(release, "cuMemRelease");
    find(map, "cuMemMap");
    find(unmap, "cuMemUnmap");
    find(set_access, "cuMemSetAccess");
    check(init(0), "cuInit");
}

void Driver::check(int status, const char* call) const {
    if (status == 0) return;
    const char* name = nullptr;
    if (error_name(status, &name) != 0 || !name) name = "an unknown error";
    raise<std::runtime_error>("arena: ", call, " failed: ", name, " (", status, ")");
}

}  // namespace r1
