// Arenas on the host and on a GPU.
#include "arena/arena.h"

#include "arena/device_memory.h"
#include "arena/host_memory.h"
#include "bindings/bindings.h"

namespace r1 {
namespace {

template <class Memory>
void add_methods(py::class_<Arena<Memory>>& arena) {
    arena.def("commit", &Arena<Memory>::commit)
        .def("release", &Arena<Memory>::release)
        .def("require", &Arena<Memory>::require)
        .def_property_readonly("address", &Arena<Memory>::address)
        .def_property_readonly("chunk_bytes", &Arena<Memory>::chunk_bytes)
        .def_property_readonly("num_bytes", &Arena<Memory>::num_bytes)
        .def_property_readonly("committed_bytes", &Arena<Memory>::committed_bytes);
}

}  // namespace

void bind_arena(py::module_& module) {
    py::class_<Arena<HostMemory>> host(module, "HostArena", py::module_local(), py::buffer_protocol());
    host.def(py::init<int64_t>()).def_buffer([](Arena<HostMemory>& arena) {
        return py::buffer_info(reinterpret_cast<unsigned char*>(arena.address()), arena.num_bytes());
    });
    add_methods(host);
    py::class_<Arena<DeviceMemory>> device(module, "DeviceArena", py::module_local());
    device.def(py::init<int64_t, int64_t, int32_t, std::string>());
    add_methods(device);
}

}  // namespace r1
