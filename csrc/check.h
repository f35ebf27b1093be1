// Checks whose messages have the expected and the actual value. They guard memory: mow/replay checks the same earlier
// with a remedy in its messages, but a direct call of mow._C must not crash the process either.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace mow {

using Shape = std::vector<int64_t>;

inline std::string shape_text(const Shape& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis) text += (axis ? ", " : "") + std::to_string(shape[axis]);
  return text + "]";
}

// std::invalid_argument reaches Python as ValueError.
inline void check(bool holds, const std::string& name, const std::string& expected, const std::string& got) {
  if (!holds) throw std::invalid_argument(name + ": expected " + expected + ", got " + got);
}

inline void check_shape(const std::string& name, const Shape& expected, const Shape& got) {
  if (got != expected) check(false, name, "shape " + shape_text(expected), shape_text(got));
}

// Low and high belong to the range. `index` tells which entry of `name` is at fault.
inline void check_range(const char* name, int64_t index, int64_t low, int64_t high, int64_t got) {
  if (got >= low && got <= high) return;
  check(false, std::string(name) + "[" + std::to_string(index) + "]",
        std::to_string(low) + " to " + std::to_string(high), std::to_string(got));
}

inline void check_between(const char* name, int64_t low, int64_t high, int64_t got) {
  if (got < low || got > high) check(false, name, std::to_string(low) + " to " + std::to_string(high),
                                     std::to_string(got));
}

inline void check_at_least(const char* name, int64_t low, int64_t got) {
  if (got < low) check(false, name, "at least " + std::to_string(low), std::to_string(got));
}

}  // namespace mow
