// A stand-in; algorithm.h says for what. libtorch holds devices by shared pointers, which need no more than the name, and
// buffers by unique ones, which call the destructor through the table of virtual functions.
#pragma once

namespace gloo::transport {
class Device;
class UnboundBuffer {
  public:
    virtual ~UnboundBuffer();
};
}  // namespace gloo::transport
