// A stand-in; algorithm.h says for what. libtorch derives a class from this one and overrides these functions. c10d.cpp makes no
// object of that class, so no table of virtual functions is made from this declaration.
#pragma once
#include <chrono>
#include <string>
#include <vector>

namespace gloo::rendezvous {
class Store {
  public:
    virtual ~Store();
    virtual std::vector<char> get(const std::string& key) = 0;
    virtual void set(const std::string& key, const std::vector<char>& value) = 0;
    virtual void wait(const std::vector<std::string>& keys) = 0;
    virtual void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds& timeout) = 0;
};
}  // namespace gloo::rendezvous
