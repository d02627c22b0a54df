// A stack of its own and a switch to it: a few instructions on x86-64, ucontext (two system calls a switch) elsewhere.
#pragma once
#include <cstddef>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace r1::emulation {

class Fiber {
public:
    // Prepare `entry`, which must never return: it resumes the scheduler for good.
    void prepare(void (*entry)());
    // From the scheduler: run until the fiber calls leave().
    void enter();
    // From the fiber: back to the scheduler.
    void leave();

private:
    static constexpr size_t STACK_BYTES = 128 << 10;
    std::unique_ptr<unsigned char[]> stack_;
#if defined(__x86_64__)
    void* own_ = nullptr;
    void* scheduler_ = nullptr;
#else
    ucontext_t own_, scheduler_;
#endif
};

}  // namespace r1::emulation
