#include "emulation/fiber.h"

#include <cstdint>

#if defined(__x86_64__)
// Saves the registers that a callee must keep, swaps stacks, restores: r1_switch_stack(void** save, void* load).
asm(R"(
.text
.type r1_switch_stack, @function
r1_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size r1_switch_stack, .-r1_switch_stack
)");
extern "C" void r1_switch_stack(void** save, void* load);
#endif

namespace r1::emulation {

#if defined(__x86_64__)

void Fiber::prepare(void (*entry)()) {
    if (!stack_) stack_.reset(new unsigned char[STACK_BYTES]);
    const auto top = reinterpret_cast<uintptr_t>(stack_.get() + STACK_BYTES) & ~uintptr_t{15};
    auto* words = reinterpret_cast<void**>(top);
    // As if `entry` had been called: on entry the stack pointer is 8 bytes off a multiple of 16.
    *--words = nullptr;
    *--words = reinterpret_cast<void*>(entry);
    own_ = words - 6;  // six registers, whatever they hold
}

void Fiber::enter() { r1_switch_stack(&scheduler_, own_); }
void Fiber::leave() { r1_switch_stack(&own_, scheduler_); }

#else

void Fiber::prepare(void (*entry)()) {
    if (!stack_) stack_.reset(new unsigned char[STACK_BYTES]);
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = STACK_BYTES;
    own_.uc_link = nullptr;
    makecontext(&own_, entry, 0);
}

void Fiber::enter() { swapcontext(&scheduler_, &own_); }
void Fiber::leave() { swapcontext(&own_, &scheduler_); }

#endif

}  // namespace r1::emulation
