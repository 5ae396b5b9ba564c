// The only inline PTX and the only compiler-specific names of the project.
// Kernels are written against this page; another compiler needs only another page like it.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define DEVICE __device__ __forceinline__
// A kernel of `threads` threads a block, two blocks at least on a multiprocessor; `...` holds the arguments. Without the
// second number the assembler aims for more blocks and spills for it.
#define KERNEL(name, threads, ...) extern "C" __global__ void __launch_bounds__(threads, 2) name(__VA_ARGS__)
// A block's static shared array.
#define SHARED(type, name, count) __shared__ type name[count]

// ---- 16-bit floats: storage only; arithmetic happens in f32 ----

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEVICE float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Round to nearest, ties to even; overflow gives inf.
DEVICE void narrow(float& y, float x) { y = x; }
DEVICE void narrow(double& y, double x) { y = x; }
DEVICE void narrow(f16& y, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
DEVICE void narrow(bf16& y, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

// ---- vector access: V numbers in one instruction; the address must be a multiple of V * sizeof(T) ----

template <class T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };

template <class T, int V> DEVICE Pack<T, V> load(const T* p) { return *reinterpret_cast<const Pack<T, V>*>(p); }
template <class T, int V> DEVICE void store(T* p, const Pack<T, V>& x) { *reinterpret_cast<Pack<T, V>*>(p) = x; }

// ---- between blocks ----

// Adds and returns the old value. What this thread wrote before is visible to whoever sees the sum (release), and
// what others released is visible to this thread afterwards (acquire).
DEVICE u32 add_release_acquire(u32* p, u32 x) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(x) : "memory");
    return old;
}
