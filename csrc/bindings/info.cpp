// What was built, and for what.
#include "bindings/bindings.h"
#include "core/geometry.h"
#include "cpu/isa.h"

namespace r1 {
namespace {

py::dict build_info() {
    py::list isas;
    for (Isa isa : compiled_isas()) isas.append(name_of(isa));
    py::dict info;
    info["cuda_targets"] = R1_CUDA_TARGETS;
    info["isas"] = isas;
    info["isa"] = name_of(current_isa());
    info["compiler"] = __VERSION__;
    info["page_tokens"] = PAGE_TOKENS;
    info["chunk_tokens"] = CHUNK_TOKENS;
    return info;
}

}  // namespace

void bind_info(py::module_& module) {
    module.def("build_info", &build_info, "What this module was compiled for, and the instruction set it uses here.");
    module.def("select_isa", &select_isa, py::arg("name"), "Make the CPU ops use another instruction set: for tests.");
}

}  // namespace r1
