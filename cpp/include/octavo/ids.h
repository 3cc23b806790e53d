// Strong integer ids. An id of one kind cannot be passed where another is meant.
#pragma once

#include <cstdint>

namespace octavo {

// A block of the KV pool. Block 0 is the null block: padding reads and writes land there.
enum class BlockId : int32_t {};
inline constexpr BlockId kNullBlock{0};
inline constexpr BlockId kNoBlock{-1};

// A request inside the engine: an index in the low half, a generation in the high half, so that an
// id that outlives its request is recognised instead of naming the index's next owner. Zero is
// never given out.
enum class RequestId : uint64_t {};

// The persistent place of a running request: its row in the block tables and in per-slot device
// state.
enum class RowSlot : int32_t {};
inline constexpr RowSlot kNoSlot{-1};

constexpr int32_t Index(BlockId b) { return static_cast<int32_t>(b); }
constexpr int32_t Index(RowSlot s) { return static_cast<int32_t>(s); }
constexpr uint64_t Value(RequestId r) { return static_cast<uint64_t>(r); }

}  // namespace octavo
