// Which of the instruction sets that csrc/cpu/per_isa was compiled for this CPU runs.
#pragma once
#include <string>
#include <vector>

namespace r1 {

enum class Isa : int { plain = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };

const char* name_of(Isa isa);

// Those compiled in, poorest first.
std::vector<Isa> compiled_isas();

// The richest one that is compiled in and that this CPU and its operating system run.
Isa best_isa();

// What the ops use: best_isa(), or what select_isa chose.
Isa current_isa();

// For tests and benchmarks: raises ValueError for an instruction set that is not compiled in or that would fault here.
void select_isa(const std::string& name);

}  // namespace r1
