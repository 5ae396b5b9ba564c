// What the stand-in (platform.cuh) asks of the emulator. Rust fills the table (src/hooks.rs); hooks.cpp passes each call
// on, together with the address it came from, which the debug information turns into a file and a line.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace emu {

// The work of an operation of a warp: reads in[lane] and writes out[lane] of each of the `lanes`, which have arrived.
using Combine = void (*)(uint32_t lanes, const void* const* in, void* const* out, int argument);

enum Operation { SYNC, SHUFFLE, VOTE, MATCH, REDUCE, LOAD_MATRIX, MMA };
enum Access { READ = 0, WRITE = 1, ATOMIC = 2, RELEASE_ACQUIRE = 4, ALIGNED = 8 };

// The same layout as `Runtime` in src/runtime.rs.
struct Runtime {
    uint32_t (*index)(int which);
    void* (*shared)(const void* key, size_t bytes, size_t align, const void* site);
    void (*barrier)(uint32_t id, uint32_t threads, const void* site);
    void (*collective)(int operation, uint32_t mask, int argument, const void* in, void* out, Combine, const void* site);
    void (*access)(const void* p, size_t bytes, int kind, const void* site);
    void (*copy_async)(void* to, const void* from, size_t bytes, bool valid, const void* site);
    void (*copy_commit)();
    void (*copy_wait)(uint32_t pending);
    void (*fault)(const char* what, const void* site);
};

// A kernel that registered itself. The same layout as `Kernel` in src/runtime.rs. `call` reads the argument struct at `arguments`.
struct Kernel {
    const char* name;
    uint32_t threads;
    size_t argument_bytes;
    void (*call)(const void* arguments);
    const Kernel* next;
};

}  // namespace emu

extern "C" {
uint32_t emu_index(int which) __attribute__((const));
void* emu_shared(const void* key, size_t bytes, size_t align);
void emu_barrier(uint32_t id, uint32_t threads);
void emu_collective(int operation, uint32_t mask, int argument, const void* in, void* out, emu::Combine);
void emu_access(const void* p, size_t bytes, int kind);
void emu_copy_async(void* to, const void* from, size_t bytes, bool valid);
void emu_copy_commit();
void emu_copy_wait(uint32_t pending);
void emu_fault(const char* what);
void emu_register(emu::Kernel*);
}
