// Parameter structs as Python sees them: made with keyword arguments, pointers as integers (Tensor.data_ptr(), 0: none).
#pragma once
#include "bindings/bindings.h"

namespace r1 {

template <class Params>
class ParamsClass {
public:
    ParamsClass(py::module_& module, const char* name) : class_(module, name, py::module_local()) {  // the tests load two modules that have it
        class_.def(py::init([](const py::kwargs& fields) {
            py::object self = py::cast(Params{});
            for (const auto& [key, value] : fields) py::setattr(self, key, value);
            return self.cast<Params>();
        }));
    }

    template <class Pointed>
    ParamsClass& field(const char* name, Pointed* Params::*member) {
        class_.def_property(
            name, [member](const Params& params) { return reinterpret_cast<uintptr_t>(params.*member); },
            [member](Params& params, uintptr_t address) { params.*member = reinterpret_cast<Pointed*>(address); });
        return *this;
    }

    template <class Number>
    ParamsClass& field(const char* name, Number Params::*member) {
        class_.def_readwrite(name, member);
        return *this;
    }

private:
    py::class_<Params> class_;
};

}  // namespace r1

// R1_FIELD(KvAppendParams, query) in a chain of fields.
#define R1_FIELD(Params, name) field(#name, &Params::name)
