// A stand-in; algorithm.h says for what. libtorch calls the one method, and holds contexts by pointers alone.
#pragma once
#include <chrono>

namespace gloo {
class Context {
  public:
    void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
