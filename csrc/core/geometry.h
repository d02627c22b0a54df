// Sizes that every op agrees on. Pages and chunks are counted from the start of a segment, so that what is computed for
// a sequence depends on neither its neighbours in the batch nor its place in memory.
#pragma once
#include <cstdint>

namespace r1 {

constexpr int PAGE_TOKENS = 64;     // tokens of a page; one (page, head) tile is contiguous
constexpr int CHUNK_TOKENS = 512;   // tokens of a work item of paged_decode: 256 KiB of K and V at head_dim 128
constexpr int CHUNK_PAGES = CHUNK_TOKENS / PAGE_TOKENS;
constexpr int MAX_HEAD_DIM = 256;
constexpr int MAX_GQA = 16;         // query heads for each KV head

}  // namespace r1
