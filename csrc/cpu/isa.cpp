#include "cpu/isa.h"

#include <atomic>

#include "core/errors.h"

namespace r1 {

namespace {

constexpr const char* NAMES[] = {"plain", "avx2", "avx512", "avx512_bf16"};

bool runs(Isa isa) {
#if defined(__x86_64__)
    // The compiler's run-time support asks XGETBV too, so that registers that the system does not save count as absent.
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512cd");
    if (isa == Isa::avx2) return avx2;
    if (isa == Isa::avx512) return avx512;
    if (isa == Isa::avx512_bf16)
        return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#endif
    return isa == Isa::plain;
}

std::atomic<int>& selected() {
    static std::atomic<int> isa{static_cast<int>(best_isa())};
    return isa;
}

}  // namespace

const char* name_of(Isa isa) { return NAMES[static_cast<int>(isa)]; }

std::vector<Isa> compiled_isas() {
    std::vector<Isa> found{Isa::plain};
    // csrc/compile.py defines these for the flags that the compiler takes.
#ifdef R1_WITH_avx2
    found.push_back(Isa::avx2);
#endif
#ifdef R1_WITH_avx512
    found.push_back(Isa::avx512);
#endif
#ifdef R1_WITH_avx512_bf16
    found.push_back(Isa::avx512_bf16);
#endif
    return found;
}

Isa best_isa() {
    Isa best = Isa::plain;
    for (Isa isa : compiled_isas())
        if (runs(isa)) best = isa;
    return best;
}

Isa current_isa() { return static_cast<Isa>(selected().load(std::memory_order_relaxed)); }

void select_isa(const std::string& name) {
    std::string usable;
    for (Isa isa : compiled_isas()) {
        if (!runs(isa)) continue;
        if (name == name_of(isa)) {
            selected() = static_cast<int>(isa);
            return;
        }
        usable += std::string(usable.empty() ? "" : ", ") + name_of(isa);
    }
    raise<std::invalid_argument>("isa = '", name, "' is not one that runs here: ", usable);
}

}  // namespace r1
