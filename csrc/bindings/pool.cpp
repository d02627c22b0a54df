// The page pool.
#include "bindings/bindings.h"
#include "bindings/fields.h"
#include "pool/page_pool.h"

namespace r1 {
namespace {

py::tuple tuple_of(const PageMoves& moves) { return py::make_tuple(moves.source, moves.destination); }

py::tuple tuple_of(const PagePool::SegmentView& segment) {
    return py::make_tuple(segment.pages, segment.num_tokens, segment.on_host);
}

// A method whose result becomes a tuple.
template <class... Args>
auto as_tuple(PageMoves (PagePool::*method)(Args...)) {
    return [method](PagePool& pool, Args... args) { return tuple_of((pool.*method)(args...)); };
}

}  // namespace

void bind_pool(py::module_& module) {
    ParamsClass<PagePoolParams>(module, "PagePoolParams")
        .R1_FIELD(PagePoolParams, suffix_pages)
        .R1_FIELD(PagePoolParams, prefix_pages)
        .R1_FIELD(PagePoolParams, suffix_length)
        .R1_FIELD(PagePoolParams, group)
        .R1_FIELD(PagePoolParams, prefix_length)
        .R1_FIELD(PagePoolParams, num_pages)
        .R1_FIELD(PagePoolParams, num_host_pages)
        .R1_FIELD(PagePoolParams, num_sequences)
        .R1_FIELD(PagePoolParams, num_rows)
        .R1_FIELD(PagePoolParams, num_groups)
        .R1_FIELD(PagePoolParams, suffix_table_pages)
        .R1_FIELD(PagePoolParams, prefix_table_pages);
    py::register_local_exception<PoolExhausted>(module, "PoolExhausted", PyExc_RuntimeError);
    const auto slots_at = [](uintptr_t address) { return reinterpret_cast<int32_t*>(address); };
    py::class_<PagePool>(module, "PagePool", py::module_local())
        .def(py::init<const PagePoolParams&>())
        .def("add_group", &PagePool::add_group)
        .def("release_group", &PagePool::release_group)
        .def("drop_prefixes", &PagePool::drop_prefixes)
        .def("add_sequences", &PagePool::add_sequences)
        .def("fork", &PagePool::fork)
        .def("free_sequences", &PagePool::free_sequences)
        .def("reserve", as_tuple(&PagePool::reserve))
        .def("advance", &PagePool::advance)
        .def("truncate", &PagePool::truncate)
        .def("next_slots",
             [slots_at](const PagePool& pool, const std::vector<Handle>& sequences,
                        const std::vector<int64_t>& num_tokens,
                        uintptr_t slots) { pool.next_slots(sequences, num_tokens, slots_at(slots)); })
        .def("prefix_slots", [slots_at](const PagePool& pool, Handle group, int64_t begin, int64_t num_tokens,
                                        uintptr_t slots) { pool.prefix_slots(group, begin, num_tokens, slots_at(slots)); })
        .def("bind", &PagePool::bind)
        .def("unbind", &PagePool::unbind)
        .def("swap_out", as_tuple(&PagePool::swap_out))
        .def("swap_in", as_tuple(&PagePool::swap_in))
        .def("swap_out_group", as_tuple(&PagePool::swap_out_group))
        .def("swap_in_group", as_tuple(&PagePool::swap_in_group))
        .def("own_segment", [](const PagePool& pool, Handle sequence) { return tuple_of(pool.own_segment(sequence)); })
        .def("prefix_segment", [](const PagePool& pool, Handle group) { return tuple_of(pool.prefix_segment(group)); })
        .def("group_of", &PagePool::group_of)
        .def("has_sequence", &PagePool::has_sequence)
        .def("has_group", &PagePool::has_group)
        .def("references", [](const PagePool& pool, int32_t page) { return pool.device_pages().references(page); })
        .def_property_readonly("num_free", [](const PagePool& pool) { return pool.device_pages().num_free(); })
        .def_property_readonly("num_free_host", [](const PagePool& pool) { return pool.host_pages().num_free(); })
        .def("take_dirty_suffix_rows", &PagePool::take_dirty_suffix_rows)
        .def("take_dirty_prefix_rows", &PagePool::take_dirty_prefix_rows)
        .def("check", &PagePool::check);
}

}  // namespace r1
