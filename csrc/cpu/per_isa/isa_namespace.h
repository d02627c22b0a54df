// Everything in csrc/cpu/per_isa lives in the namespace r1::isa_NAME of the instruction set it is compiled for, and uses
// no inline function or template from outside: the linker keeps one copy of such a function, perhaps the one with
// instructions that this CPU lacks (tests/csrc/test_objects.py looks for them).
#pragma once

#define R1_ISA_JOIN_(isa) isa_##isa
#define R1_ISA_JOIN(isa) R1_ISA_JOIN_(isa)
#define R1_ISA_NAMESPACE R1_ISA_JOIN(R1_ISA)
