// The only inline PTX and the only compiler-specific names of the project.
// Kernels are written against this page; another compiler needs only another page like it.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#define DEVICE __device__ __forceinline__
// Defines a kernel of `threads` threads a block, of which a multiprocessor holds two blocks at least; `...` holds the
// arguments. Without the number of blocks the assembler aims for more of them and spills for it.
#define KERNEL(name, threads, ...) KERNEL_OF(2, name, threads, __VA_ARGS__)
// Defines a kernel of `threads` threads a block, of which a multiprocessor holds `blocks` blocks at least.
#define KERNEL_OF(blocks, name, threads, ...) extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
// Declares a static array of `count` numbers in the block's shared memory.
#define SHARED(type, name, count) __shared__ type name[count]
// Names the block's dynamic shared memory, as a Struct; the launch gives sizeof(Struct) bytes.
#define SHARED_DYNAMIC(Struct, name)                                          \
    extern __shared__ __align__(128) unsigned char platform_dynamic_shared[]; \
    static_assert(alignof(Struct) <= 128, "aligned to 128 bytes at most");    \
    Struct& name = *reinterpret_cast<Struct*>(platform_dynamic_shared)

// ---- 16-bit floats: storage only; arithmetic happens in f32 ----

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

// x in its type of arithmetic; exact.
DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
DEVICE float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// Stores x in the type of y, rounded to nearest, ties to even; overflow gives inf.
DEVICE void narrow(float& y, float x) { y = x; }
DEVICE void narrow(double& y, double x) { y = x; }
DEVICE void narrow(f16& y, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }
DEVICE void narrow(bf16& y, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x)); }

// The rounded product x y, the same bits wherever it is computed: a compiler may fuse a plain product with the sum that
// it goes into in one place and not in another, and then one number has two values.
DEVICE float rounded_product(float x, float y) { return __fmul_rn(x, y); }
DEVICE double rounded_product(double x, double y) { return __dmul_rn(x, y); }

// ---- vector access: V numbers in one instruction; the address must be a multiple of V * sizeof(T) ----

// V numbers of type T, loaded or stored by one instruction.
template <class T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };

template <class T, int V> DEVICE Pack<T, V> load(const T* p) { return *reinterpret_cast<const Pack<T, V>*>(p); }
template <class T, int V> DEVICE void store(T* p, const Pack<T, V>& x) { *reinterpret_cast<Pack<T, V>*>(p) = x; }

// ---- between blocks ----

// Adds x to *p atomically and returns the old value. What this thread wrote before is visible to whoever sees the sum
// (release), and what others released is visible to this thread afterwards (acquire).
DEVICE u32 add_release_acquire(u32* p, u32 x) {
    u32 old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(x) : "memory");
    return old;
}

// Reads *p, which other blocks may be changing by atomics: one of the values that it has had.
DEVICE u32 load_relaxed(const u32* p) {
    u32 x;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p));
    return x;
}

// ---- a part of a block ----

// Waits until `threads` threads, in whole warps, have arrived at barrier `id`, 1 to 15 (0 is that of __syncthreads).
DEVICE void named_barrier(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- tiles: cp.async, ldmatrix, mma.sync ----

// An address in the .shared space, in 32 bits, as PTX takes it.
using SharedAddress = u32;
DEVICE SharedAddress shared_address(const void* p) { return u32(__cvta_generic_to_shared(p)); }
// x, in a register that the compiler cannot see through: it would compute x again wherever x is needed.
DEVICE SharedAddress kept(SharedAddress x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Starts a copy of 16 bytes from global to shared memory that bypasses the L1 cache; if not `valid` it writes zeros and
// does not read `from`. In flight until a wait; both addresses must be multiples of 16.
DEVICE void copy_async16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(valid ? 16 : 0)
                 : "memory");
}
// As copy_async16, but nothing happens if not `wanted`: by a predicate, because a branch costs a barrier of the warp.
DEVICE void copy_async16_if(bool wanted, void* to, const void* from) {
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %2, 0; @p cp.async.cg.shared.global [%0], [%1], 16; }" ::"r"(shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(u32(wanted))
                 : "memory");
}
// As copy_async16 of what is `AT` bytes behind both addresses, from -2048 to 2047: so far an instruction adds by itself.
template <int AT> DEVICE void copy_async16_at(SharedAddress to, const void* from) {
    static_assert(AT >= -2048 && AT < 2048, "an immediate");
    asm volatile("cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "n"(AT) : "memory");
}
// The same, but nothing happens if not `wanted`.
template <int AT> DEVICE void copy_async16_at_if(bool wanted, SharedAddress to, const void* from) {
    static_assert(AT >= -2048 && AT < 2048, "an immediate");
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; @p cp.async.cg.shared.global [%0 + %2], [%1 + %2], 16; }" ::"r"(to),
                 "l"(__cvta_generic_to_global(from)), "n"(AT), "r"(u32(wanted))
                 : "memory");
}
// As copy_async16 of 4 or 8 bytes, through the L1 cache.
template <int BYTES> DEVICE void copy_async_few(SharedAddress to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)), "n"(BYTES) : "memory");
}
// Ends this thread's current group of copies.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups of copies are in flight. Other threads see the bytes after a barrier.
template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Loads four 8x8 matrices of 16-bit numbers, by a whole warp. Matrix j has its rows at the addresses `row` of lanes
// 8j .. 8j+7; r[j] of lane l receives elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4.
DEVICE void load_matrix_x4(u32 (&r)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
DEVICE void load_matrix_x4(u32 (&r)[4], const void* row) { load_matrix_x4(r, shared_address(row)); }
// Loads four 8x8 matrices of 16-bit numbers, by a whole warp. Matrix j has its rows at the addresses `row` of lanes
// 8j .. 8j+7; r[j] of lane l receives rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
DEVICE void load_matrix_x4_transposed(u32 (&r)[4], SharedAddress row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
DEVICE void load_matrix_x4_transposed(u32 (&r)[4], const void* row) { load_matrix_x4_transposed(r, shared_address(row)); }

// d += a b of f16 by a whole warp, with PTX's fragments, accumulated in f32.
DEVICE void mma_f16_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// d = a b, as mma_f16_m16n8k16 without sums before.
DEVICE void mma_f16_m16n8k16_first(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(0.f));
}

// ---- single instructions that the compiler would not choose ----

// Two numbers, rounded to f16, in a register, as a fragment has them: the first in the lower half.
DEVICE u32 pack_f16(float first, float second) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(second), "f"(first));
    return y;
}
// The number in the lower half of a register, and in the upper half.
DEVICE float first_f16(u32 x) { return widen(f16{u16(x)}); }
DEVICE float second_f16(u32 x) { return widen(f16{u16(x >> 16)}); }
// The products of both halves, each rounded to f16.
DEVICE u32 multiply_f16(u32 x, u32 y) {
    u32 z;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(z) : "r"(x), "r"(y));
    return z;
}
// 1 if x < y, else 0: one instruction, where a comparison and a choice would be two.
DEVICE float is_below(float x, float y) {
    float z;
    asm("set.lt.f32.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}
// 1 / sqrt(x) of a normal number x > 0, off by 2^-22 of itself at most.
DEVICE float reciprocal_root(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// 1 / x of a normal number x that has a normal reciprocal, off by 2^-22 of itself at most.
DEVICE float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// The least of three numbers by their bits: of numbers >= 0 the least; if any is negative, one that is.
DEVICE float least_of(float x, float y, float z) {
    return __int_as_float(__vimin3_s32(__float_as_int(x), __float_as_int(y), __float_as_int(z)));
}
// The smaller of a + b, which wraps around, and c: one instruction on Hopper.
DEVICE u32 add_min(u32 a, u32 b, u32 c) { return __viaddmin_u32(a, b, c); }
