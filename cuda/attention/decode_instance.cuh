// The body that every decode_<head dim>_<dtype>.cu instantiates.
#pragma once

#include "attention/decode.cuh"

namespace octavo::cuda {

template <typename T, int kHeadDim, typename Cached>
Status LaunchDecodeOf(const DecodeChoice& choice, const DecodeParams& p,
                      const LaunchShape& launch) {
  using Shapes = DecodeShapesOf<T, Cached, kHeadDim>;
  if constexpr (kHeadDim < 256) {
    if (choice.column_tiles == 2) {
      return choice.pair ? LaunchDecodeShape<typename Shapes::template Pair<2>>(p, launch)
                         : LaunchDecodeShape<typename Shapes::template Wide<2>>(p, launch);
    }
  }
  return choice.pair ? LaunchDecodeShape<typename Shapes::template Pair<1>>(p, launch)
                     : LaunchDecodeShape<typename Shapes::template Wide<1>>(p, launch);
}

}  // namespace octavo::cuda
