// What passes between an engine and whoever runs image and audio encoders.
//
// An item is one image or audio clip of a prompt: a span of placeholder tokens whose embeddings an
// encoder computes. The engine says when to encode an item, how long to keep its embeddings, and
// which tokens of a step take them.
//
// A cross item is the input of an encoder-decoder model instead: it has no place among the tokens;
// its keys and values fill blocks of the cross groups, and every token of its request sees them.
#pragma once

#include <cstdint>

namespace octavo {

inline constexpr int32_t kMaxEncoderItems = 1024;  // of one request

// One item of a prompt, as it is submitted.
struct EncoderItem {
  uint64_t hash[2] = {};       // of the content and of all that decides its embeddings
  int32_t start = 0;           // its first token in the prompt
  int32_t length = 0;          // tokens of its span
  int32_t embeddings = 0;      // rows that the encoder yields, what budget and cache are counted in
  bool bidirectional = false;  // its tokens see each other: no chunk may end inside the span
  bool cross = false;          // start and length are 0: every token of the request sees it
};

// Encode this item before the step's forward pass and keep the embeddings as `entry`. A cross item
// has no entry (-1): write its keys and values into the blocks that the tables of all cross groups
// name for the row.
struct EncoderInput {
  uint64_t request;
  int32_t item;   // of the request, in the order of its items
  int32_t entry;  // where the embeddings are kept until the entry is evicted
  int32_t row;    // of the step: the first that takes them
};

// Tokens [token, token + count) of the step are tokens [offset, offset + count) of an item's span.
struct EncoderSpan {
  int32_t token;
  int32_t count;
  int32_t offset;
  int32_t entry;
  int32_t item;
  int32_t row;
};

}  // namespace octavo
