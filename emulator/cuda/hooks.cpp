// Linked into each kernel library. Never compiled with -fsanitize=thread itself: the `__tsan_*` functions below are what
// that option makes of the kernels' loads and stores, and libtsan is not linked.
#include "runtime.h"
#include <string.h>

static const emu::Runtime* runtime;
static const emu::Kernel* kernels;
extern char __ehdr_start __attribute__((visibility("hidden")));
extern char _end __attribute__((visibility("hidden")));

#define SITE __builtin_return_address(0)
#define HOOK __attribute__((noinline)) void

extern "C" {
// Takes the emulator's functions, and returns the library's first byte, the byte after its last, and its kernels.
__attribute__((visibility("default"))) void emu_open(const emu::Runtime* r, const void** first, const void** end, const emu::Kernel** list) {
    runtime = r;
    *first = &__ehdr_start;
    *end = &_end;
    *list = kernels;
}
HOOK emu_register(emu::Kernel* kernel) {
    kernel->next = kernels;
    kernels = kernel;
}
uint32_t emu_index(int which) { return runtime->index(which); }
void* emu_shared(const void* key, size_t bytes, size_t align) { return runtime->shared(key, bytes, align, SITE); }
HOOK emu_barrier(uint32_t id, uint32_t threads) { runtime->barrier(id, threads, SITE); }
HOOK emu_collective(int operation, uint32_t mask, int argument, const void* in, void* out, emu::Combine combine) {
    runtime->collective(operation, mask, argument, in, out, combine, SITE);
}
HOOK emu_access(const void* p, size_t bytes, int kind) { runtime->access(p, bytes, kind, SITE); }
HOOK emu_copy_async(void* to, const void* from, size_t bytes, bool valid) { runtime->copy_async(to, from, bytes, valid, SITE); }
HOOK emu_copy_commit() { runtime->copy_commit(); }
HOOK emu_copy_wait(uint32_t pending) { runtime->copy_wait(pending); }
HOOK emu_fault(const char* what) { runtime->fault(what, SITE); }

#define ACCESS(name, bytes, kind) HOOK name(const void* p) { runtime->access(p, bytes, kind, SITE); }
#define ACCESSES(n)                                                                                      \
    ACCESS(__tsan_read##n, n, emu::READ | emu::ALIGNED)                                                                 \
    ACCESS(__tsan_write##n, n, emu::WRITE | emu::ALIGNED)                                                               \
    ACCESS(__tsan_unaligned_read##n, n, emu::READ)                                                       \
    ACCESS(__tsan_unaligned_write##n, n, emu::WRITE)                                                     \
    ACCESS(__tsan_volatile_read##n, n, emu::READ | emu::ALIGNED)                                                        \
    ACCESS(__tsan_volatile_write##n, n, emu::WRITE | emu::ALIGNED)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
HOOK __tsan_read_range(const void* p, size_t n) { runtime->access(p, n, emu::READ, SITE); }
HOOK __tsan_write_range(const void* p, size_t n) { runtime->access(p, n, emu::WRITE, SITE); }
void* __tsan_memcpy(void* to, const void* from, size_t n) {
    runtime->access(from, n, emu::READ, SITE);
    runtime->access(to, n, emu::WRITE, SITE);
    return memcpy(to, from, n);
}
void* __tsan_memset(void* to, int value, size_t n) {
    runtime->access(to, n, emu::WRITE, SITE);
    return memset(to, value, n);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
