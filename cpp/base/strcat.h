// StrCat: joins values into a message. For errors and logs, not for the step path.
#pragma once

#include <sstream>
#include <string>

namespace octavo {

template <typename... Args>
std::string StrCat(const Args&... args) {
  std::ostringstream out;
  out.exceptions(std::ios::badbit);  // or memory that runs out would cut the message short
  (out << ... << args);
  return out.str();
}

}  // namespace octavo
