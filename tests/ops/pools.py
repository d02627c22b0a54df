"""A page pool small enough to be exhausted."""

from __future__ import annotations

from r1fast.ops.page_pool import PagePool

PAGE = 64
ROWS, ROW_PAGES, PREFIX_PAGES = 3, 6, 4


def small_pool(**changes: int) -> PagePool:
    sizes = {"num_pages": 16, "num_host_pages": 8, "num_sequences": 6, "num_rows": ROWS, "num_groups": 3}
    room = {"max_suffix_tokens": ROW_PAGES * PAGE, "max_prefix_tokens": PREFIX_PAGES * PAGE}
    return PagePool(**(sizes | room | changes))
