// How many CTAs look at a row together: as many as leave none of the multiprocessors idle.
#pragma once

#include "base/ops_check.h"
#include "common/launch.h"
#include "sampling/row.cuh"

namespace octavo::cuda {

inline Status ShapeRowTeams(int64_t rows, LaunchShape* shape) {
  const Result<DeviceFacts> facts = CurrentDeviceFacts();
  if (!facts.ok()) return facts.status();
  int64_t team = facts.value().clusters ? kMaxTeam : 1;
  while (team > 1 && rows * team > facts.value().multiprocessors) team /= 2;
  if (rows > INT32_MAX) return InvalidOp("sample", "logits has 2^31 rows or more");
  shape->grid = static_cast<unsigned>(rows * team);
  shape->cluster = static_cast<unsigned>(team);
  shape->threads = kRowThreads;
  return Status::Ok();
}

}  // namespace octavo::cuda
