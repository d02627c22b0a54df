// What follows the sampler: the step from one token of each row to the next.
#include "bindings/bindings.h"
#include "bindings/fields.h"
#include "ops/sequence_step.h"

namespace r1 {

void bind_step(py::module_& module) {
    ParamsClass<SequenceStepParams>(module, "SequenceStepParams")
        .R1_FIELD(SequenceStepParams, drawn_token)
        .R1_FIELD(SequenceStepParams, drawn_logp)
        .R1_FIELD(SequenceStepParams, drawn_kept_mass)
        .R1_FIELD(SequenceStepParams, drawn_entropy)
        .R1_FIELD(SequenceStepParams, drawn_status)
        .R1_FIELD(SequenceStepParams, eos)
        .R1_FIELD(SequenceStepParams, page_table)
        .R1_FIELD(SequenceStepParams, max_tokens)
        .R1_FIELD(SequenceStepParams, min_tokens)
        .R1_FIELD(SequenceStepParams, state)
        .R1_FIELD(SequenceStepParams, num_generated)
        .R1_FIELD(SequenceStepParams, token)
        .R1_FIELD(SequenceStepParams, position)
        .R1_FIELD(SequenceStepParams, suffix_length)
        .R1_FIELD(SequenceStepParams, kv_slot)
        .R1_FIELD(SequenceStepParams, group)
        .R1_FIELD(SequenceStepParams, tokens)
        .R1_FIELD(SequenceStepParams, logp)
        .R1_FIELD(SequenceStepParams, log_kept_mass)
        .R1_FIELD(SequenceStepParams, entropy)
        .R1_FIELD(SequenceStepParams, counts)
        .R1_FIELD(SequenceStepParams, num_rows)
        .R1_FIELD(SequenceStepParams, num_eos)
        .R1_FIELD(SequenceStepParams, table_pages)
        .R1_FIELD(SequenceStepParams, capacity);
    // They keep the interpreter: to give it up and wait for it again takes longer than a step.
    module.def("sequence_step_cpu", &sequence_step_cpu, py::arg("params"), py::arg("num_threads"));
#ifdef R1_WITH_CUDA
    module.def("sequence_step_cuda", &sequence_step_cuda, py::arg("params"), py::arg("stream"));
#endif
}

}  // namespace r1
