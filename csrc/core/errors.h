// Checks that throw: the condition as written, then the values; pybind11 makes ValueError and RuntimeError of them.
#pragma once
#include <sstream>
#include <stdexcept>

namespace r1 {

template <class Error, class... Parts>
[[noreturn]] void raise(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw Error(text.str());
}

}  // namespace r1

// R1_CHECK(lengths_ok, "paged_decode: ", name, " = ", value, " must be ..."): a caller's mistake, ValueError in Python.
#define R1_CHECK(condition, ...)                                    \
    do {                                                            \
        if (!(condition)) r1::raise<std::invalid_argument>(__VA_ARGS__, " (", #condition, ")"); \
    } while (false)
