// Refusals: what was asked for does not fit now, nothing has changed, and it may fit later. PoolExhausted in Python.
#pragma once
#include <stdexcept>

namespace r1 {

class PoolExhausted : public std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace r1
