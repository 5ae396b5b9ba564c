// The page that stands in for kernels/platform.cuh when the host's C++ compiler builds the kernels: the same names, and
// the CUDA built-ins that the kernels use. CUDA threads are coroutines; whatever they do together goes to the emulator.
#pragma once
#include <math.h>
#include <string.h>
#include "runtime.h"

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

// Inlined, so that a hook's return address lies in the kernel's own line.
#define EMU_INLINE inline __attribute__((always_inline))
// For the emulator's own bookkeeping, which makes no access of the kernel's.
#define EMU_UNSEEN __attribute__((noinline, no_sanitize("thread")))

#define DEVICE inline
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict

template <class A> EMU_UNSEEN void emu_call(void (*kernel)(A), const void* arguments) {
    kernel(*static_cast<const A*>(arguments));
}
template <class A> constexpr size_t emu_argument_bytes(void (*)(A)) { return sizeof(A); }

#define KERNEL(name, threads, ...)                                                                               \
    static void name(__VA_ARGS__);                                                                               \
    static emu::Kernel name##_kernel = {#name, threads, emu_argument_bytes(name),                                \
                                        [](const void* arguments) { emu_call(name, arguments); }, nullptr};      \
    __attribute__((constructor, no_sanitize("thread"))) static void name##_register() {                          \
        emu_register(&name##_kernel);                                                                            \
    }                                                                                                            \
    static void name(__VA_ARGS__)
#define KERNEL_OF(blocks, name, threads, ...) KERNEL(name, threads, __VA_ARGS__)
// `key` is one object per instantiation of the function, as a __shared__ array is.
#define SHARED(type, name, count)                                                                                \
    static char name##_key;                                                                                      \
    type(&name)[count] = *reinterpret_cast<type(*)[count]>(emu_shared(&name##_key, sizeof(type) * (count), alignof(type)))
// Names the block's dynamic shared memory, as a Struct.
#define SHARED_DYNAMIC(Struct, name) \
    Struct& name = *reinterpret_cast<Struct*>(emu_shared(nullptr, sizeof(Struct), alignof(Struct)))

struct EmuIndex { u32 x, y, z; };
#define threadIdx (EmuIndex{emu_index(0), 0, 0})
#define blockIdx (EmuIndex{emu_index(1), 0, 0})
#define blockDim (EmuIndex{emu_index(2), 1, 1})
#define gridDim (EmuIndex{emu_index(3), 1, 1})
EMU_INLINE int emu_lane() { return int(emu_index(0) % 32); }

// ---- 16-bit floats ----

EMU_INLINE float __uint_as_float(u32 x) { return __builtin_bit_cast(float, x); }
EMU_INLINE float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
EMU_INLINE u32 __float_as_uint(float x) { return __builtin_bit_cast(u32, x); }
EMU_INLINE int __ffs(int x) { return __builtin_ffs(x); }
EMU_INLINE int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
EMU_INLINE double __longlong_as_double(i64 x) { return __builtin_bit_cast(double, x); }
EMU_INLINE i64 __double_as_longlong(double x) { return __builtin_bit_cast(i64, x); }

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

DEVICE float widen(float x) { return x; }
DEVICE double widen(double x) { return x; }
DEVICE float widen(f16 x) {
    const u32 sign = u32(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
    // A subnormal is fraction * 2^-24, which f32 holds exactly.
    const float size = exponent ? __uint_as_float((exponent + 112) << 23 | fraction << 13) : float(fraction) * 0x1p-24f;
    return sign ? -size : size;
}
DEVICE float widen(bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

// x shifted right by `dropped` bits, rounded to nearest, ties to even.
DEVICE u32 emu_round_off(u32 x, int dropped) { return (x + ((1u << (dropped - 1)) - 1) + (x >> dropped & 1)) >> dropped; }
// Stores x in the type of y, rounded to nearest, ties to even; overflow gives inf.
DEVICE void narrow(float& y, float x) { y = x; }
DEVICE void narrow(double& y, double x) { y = x; }
DEVICE void narrow(f16& y, float x) {
    const u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) y.bits = 0x7fff;
    else if (size >= 0x47800000) y.bits = u16(sign | 0x7c00);
    else if (size >= 0x38800000) y.bits = u16(sign | emu_round_off(size - (112u << 23), 13));
    else y.bits = u16(sign | u32(rintf(__uint_as_float(size) * 0x1p24f)));  // subnormal: a multiple of 2^-24
}
DEVICE void narrow(bf16& y, float x) {
    y.bits = x != x ? 0x7fff : u16(emu_round_off(__float_as_uint(x), 16));
}

// The rounded product x y: kernels are compiled without contraction here, so that nothing fuses it with a sum.
DEVICE float rounded_product(float x, float y) { return x * y; }
DEVICE double rounded_product(double x, double y) { return x * y; }

// ---- vector access ----

template <class T, int V> struct alignas(sizeof(T) * V) Pack { T v[V]; };

EMU_INLINE void emu_check_alignment(const void* p, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(p) % bytes) emu_fault("misaligned vector access");
}
template <class T, int V> EMU_INLINE Pack<T, V> load(const T* p) {
    emu_check_alignment(p, sizeof(Pack<T, V>));
    return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <class T, int V> EMU_INLINE void store(T* p, const Pack<T, V>& x) {
    emu_check_alignment(p, sizeof(Pack<T, V>));
    *reinterpret_cast<Pack<T, V>*>(p) = x;
}

// ---- a block ----

EMU_INLINE void __syncthreads() { emu_barrier(0, 0); }
// Waits until `threads` threads, in whole warps, have arrived at barrier `id`.
EMU_INLINE void named_barrier(u32 id, u32 threads) { emu_barrier(id, threads); }

// ---- a warp ----

#define EMU_FOR_LANES(lanes) for (int lane = 0; lane < 32; ++lane) if ((lanes) >> lane & 1)

EMU_INLINE void __syncwarp(u32 mask = 0xffffffff) { emu_collective(emu::SYNC, mask, 0, nullptr, nullptr, nullptr); }

template <class T> struct EmuShuffle { T value; int from; };
template <class T> EMU_UNSEEN void emu_shuffle_lanes(u32 lanes, const void* const* in, void* const* out, int) {
    EMU_FOR_LANES(lanes) {
        const int from = static_cast<const EmuShuffle<T>*>(in[lane])->from;
        // From a lane that has exited: undefined on the device, NaN here.
        if (lanes >> from & 1) *static_cast<T*>(out[lane]) = static_cast<const EmuShuffle<T>*>(in[from])->value;
        else memset(out[lane], 0xff, sizeof(T));
    }
}
template <class T> EMU_INLINE T emu_shuffle(u32 mask, T value, int from) {
    EmuShuffle<T> in = {value, from};
    T out;
    if (!(mask >> from & 1)) emu_fault("shuffle from a lane that is not in the mask");
    emu_collective(emu::SHUFFLE, mask, int(sizeof(T)), &in, &out, emu_shuffle_lanes<T>);
    return out;
}
template <class T> EMU_INLINE T __shfl_sync(u32 mask, T x, int from) { return emu_shuffle(mask, x, from & 31); }
template <class T> EMU_INLINE T __shfl_xor_sync(u32 mask, T x, int offset) { return emu_shuffle(mask, x, (emu_lane() ^ offset) & 31); }
template <class T> EMU_INLINE T __shfl_down_sync(u32 mask, T x, int by) { return emu_shuffle(mask, x, emu_lane() + by < 32 ? emu_lane() + by : emu_lane()); }
template <class T> EMU_INLINE T __shfl_up_sync(u32 mask, T x, int by) { return emu_shuffle(mask, x, emu_lane() >= by ? emu_lane() - by : emu_lane()); }

template <class F> EMU_INLINE u32 emu_u32_lanes(int operation, u32 mask, u32 x, F) {
    u32 out;
    emu_collective(operation, mask, F::argument, &x, &out, F::run);
    return out;
}
// Defines a fold of the lanes' u32 x into one y: `step` gives the next y, from `start` on; each lane gets the last one.
#define EMU_FOLD(Name, id, start, step)                                                                          \
    struct Name {                                                                                                \
        static constexpr int argument = id;                                                                      \
        static EMU_UNSEEN void run(u32 lanes, const void* const* in, void* const* out, int) {                    \
            u32 y = start;                                                                                       \
            EMU_FOR_LANES(lanes) {                                                                               \
                const u32 x = *static_cast<const u32*>(in[lane]);                                                \
                y = step;                                                                                        \
            }                                                                                                    \
            EMU_FOR_LANES(lanes) *static_cast<u32*>(out[lane]) = y;                                              \
        }                                                                                                        \
    };
EMU_FOLD(EmuBallot, 0, 0, y | u32(x != 0) << lane)
EMU_FOLD(EmuAll, 1, 1, y && x)
EMU_FOLD(EmuAny, 2, 0, y || x)
EMU_FOLD(EmuAdd, 3, 0, y + x)
EMU_FOLD(EmuMin, 4, 0xffffffff, x < y ? x : y)
EMU_FOLD(EmuMax, 5, 0, x > y ? x : y)
EMU_FOLD(EmuOr, 6, 0, y | x)
EMU_FOLD(EmuAnd, 7, 0xffffffff, y & x)
struct EmuMatch {
    static constexpr int argument = 0;
    static EMU_UNSEEN void run(u32 lanes, const void* const* in, void* const* out, int) {
        EMU_FOR_LANES(lanes) {
            u32 same = 0;
            for (int other = 0; other < 32; ++other)
                if (lanes >> other & 1) same |= u32(!memcmp(in[other], in[lane], 4)) << other;
            *static_cast<u32*>(out[lane]) = same;
        }
    }
};
EMU_INLINE u32 __ballot_sync(u32 mask, int x) { return emu_u32_lanes(emu::VOTE, mask, x != 0, EmuBallot()); }
EMU_INLINE int __all_sync(u32 mask, int x) { return int(emu_u32_lanes(emu::VOTE, mask, x != 0, EmuAll())); }
EMU_INLINE int __any_sync(u32 mask, int x) { return int(emu_u32_lanes(emu::VOTE, mask, x != 0, EmuAny())); }
EMU_INLINE u32 __match_any_sync(u32 mask, u32 x) { return emu_u32_lanes(emu::MATCH, mask, x, EmuMatch()); }
EMU_INLINE u32 __reduce_add_sync(u32 mask, u32 x) { return emu_u32_lanes(emu::REDUCE, mask, x, EmuAdd()); }
EMU_INLINE u32 __reduce_min_sync(u32 mask, u32 x) { return emu_u32_lanes(emu::REDUCE, mask, x, EmuMin()); }
EMU_INLINE u32 __reduce_max_sync(u32 mask, u32 x) { return emu_u32_lanes(emu::REDUCE, mask, x, EmuMax()); }
EMU_INLINE u32 __reduce_or_sync(u32 mask, u32 x) { return emu_u32_lanes(emu::REDUCE, mask, x, EmuOr()); }
EMU_INLINE u32 __reduce_and_sync(u32 mask, u32 x) { return emu_u32_lanes(emu::REDUCE, mask, x, EmuAnd()); }

// ---- atomics: relaxed, and the one that orders blocks ----

// By compare and swap: blocks may run on several of the host's threads.
template <class T, class F> EMU_UNSEEN T emu_update(T* p, F f) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(p, &old, f(old), false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {}
    return old;
}
#define EMU_ATOMIC(name, T, value)                                                                               \
    EMU_INLINE T name(T* p, T x) {                                                                               \
        emu_access(p, sizeof(T), emu::ALIGNED | emu::ATOMIC);                                                                   \
        return emu_update(p, [x](T old) __attribute__((no_sanitize("thread"))) { return T(value); });            \
    }
#define EMU_ATOMICS(T)                                                                                           \
    EMU_ATOMIC(atomicAdd, T, old + x)                                                                            \
    EMU_ATOMIC(atomicMin, T, x < old ? x : old)                                                                  \
    EMU_ATOMIC(atomicMax, T, x > old ? x : old)                                                                  \
    EMU_ATOMIC(atomicOr, T, old | x)                                                                             \
    EMU_ATOMIC(atomicAnd, T, old & x)                                                                            \
    EMU_ATOMIC(atomicExch, T, x)                                                                                 \
    EMU_INLINE T atomicCAS(T* p, T expected, T x) {                                                              \
        emu_access(p, sizeof(T), emu::ALIGNED | emu::ATOMIC);                                                                   \
        return emu_update(p, [=](T old) __attribute__((no_sanitize("thread"))) { return old == expected ? x : old; }); \
    }
EMU_ATOMICS(u32)
EMU_ATOMICS(int)
EMU_ATOMICS(u64)

EMU_INLINE u32 add_release_acquire(u32* p, u32 x) {
    emu_access(p, sizeof(u32), emu::ALIGNED | emu::ATOMIC | emu::RELEASE_ACQUIRE);
    return emu_update(p, [x](u32 old) __attribute__((no_sanitize("thread"))) { return old + x; });
}

EMU_UNSEEN inline u32 emu_load(const u32* p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
EMU_INLINE u32 load_relaxed(const u32* p) {
    emu_access(p, sizeof(u32), emu::ALIGNED | emu::ATOMIC);
    return emu_load(p);
}

// ---- tiles: cp.async, ldmatrix, mma.sync ----

// Starts a copy of 16 bytes from global to shared memory, or if not `valid` of zeros. In flight until a wait.
// On the host an address in the block's shared memory is any other; its low seven bits are those on a device.
using SharedAddress = unsigned long;
DEVICE SharedAddress shared_address(const void* p) { return reinterpret_cast<SharedAddress>(p); }
DEVICE SharedAddress kept(SharedAddress x) { return x; }

EMU_INLINE void copy_async16(void* to, const void* from, bool valid) { emu_copy_async(to, from, 16, valid); }
// As copy_async16, but nothing happens if not `wanted`.
EMU_INLINE void copy_async16_if(bool wanted, void* to, const void* from) {
    if (wanted) copy_async16(to, from, true);
}
// As copy_async16 of what is `AT` bytes behind both addresses.
template <int AT> EMU_INLINE void copy_async16_at(SharedAddress to, const void* from) {
    copy_async16(reinterpret_cast<void*>(to + AT), static_cast<const u8*>(from) + AT, true);
}
template <int AT> EMU_INLINE void copy_async16_at_if(bool wanted, SharedAddress to, const void* from) {
    if (wanted) copy_async16_at<AT>(to, from);
}
// As copy_async16 of 4 or 8 bytes.
template <int BYTES> EMU_INLINE void copy_async_few(SharedAddress to, const void* from) {
    emu_copy_async(reinterpret_cast<void*>(to), from, BYTES, true);
}
// Ends this thread's current group of copies.
EMU_INLINE void copy_async_commit() { emu_copy_commit(); }
// Waits until at most N of this thread's groups of copies are in flight.
template <int N> EMU_INLINE void copy_async_wait() { emu_copy_wait(N); }

// Loads four 8x8 matrices of 16-bit numbers: the rows of matrix j are at the addresses of lanes 8j .. 8j+7. Lane l gets
// elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, transposed: rows 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
EMU_UNSEEN inline void emu_load_matrix_lanes(u32, const void* const* in, void* const* out, int transposed) {
    for (int lane = 0; lane < 32; ++lane)
        for (int j = 0; j < 4; ++j)
            for (int half = 0; half < 2; ++half) {
                const int major = lane / 4, minor = lane % 4 * 2 + half;
                const int row = transposed ? minor : major, column = transposed ? major : minor;
                const u16* p = *static_cast<const u16* const*>(in[j * 8 + row]);
                static_cast<u16*>(out[lane])[j * 2 + half] = p[column];
            }
}
EMU_INLINE void emu_load_matrix(u32 (&r)[4], const void* row, bool transposed) {
    emu_check_alignment(row, 16);
    emu_access(row, 16, emu::READ);
    emu_collective(emu::LOAD_MATRIX, 0xffffffff, transposed, &row, r, emu_load_matrix_lanes);
}
EMU_INLINE void load_matrix_x4(u32 (&r)[4], const void* row) { emu_load_matrix(r, row, false); }
EMU_INLINE void load_matrix_x4(u32 (&r)[4], SharedAddress row) { emu_load_matrix(r, reinterpret_cast<const void*>(row), false); }
EMU_INLINE void load_matrix_x4_transposed(u32 (&r)[4], const void* row) { emu_load_matrix(r, row, true); }
EMU_INLINE void load_matrix_x4_transposed(u32 (&r)[4], SharedAddress row) { emu_load_matrix(r, reinterpret_cast<const void*>(row), true); }

// A lane's part of d += a b with PTX's fragments of f16, two a register: g = lane / 4 and t = lane % 4 place the numbers.
// Products are exact, summed in f64 and rounded once, unlike on tensor cores.
struct EmuMma { u32 a[4], b[2]; float c[4]; };
DEVICE double emu_fragment(u32 x, int half) {
    const f16 number = {u16(half ? x >> 16 : x)};
    return widen(number);
}

EMU_UNSEEN void emu_mma_lanes(u32, const void* const* in, void* const* out, int) {
    constexpr int K = 16;
    double a[16][K], b[K][8];
    for (int lane = 0; lane < 32; ++lane) {
        const EmuMma& x = *static_cast<const EmuMma*>(in[lane]);
        const int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; ++half) {
            const int k = t * 2 + half;
            for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][k + i / 2 * 8] = emu_fragment(x.a[i], half);
            for (int i = 0; i < 2; ++i) b[k + i * 8][g] = emu_fragment(x.b[i], half);
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
            double sum = static_cast<const EmuMma*>(in[lane])->c[i];
            for (int k = 0; k < K; ++k) sum += a[lane / 4 + i / 2 * 8][k] * b[k][lane % 4 * 2 + i % 2];
            static_cast<float*>(out[lane])[i] = float(sum);
        }
}
EMU_INLINE void mma_f16_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    EmuMma in = {{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
    emu_collective(emu::MMA, 0xffffffff, 0, &in, d, emu_mma_lanes);
}
EMU_INLINE void mma_f16_m16n8k16_first(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    d[0] = d[1] = d[2] = d[3] = 0.f;
    mma_f16_m16n8k16(d, a, b0, b1);
}

// ---- single instructions ----

DEVICE float first_f16(u32 x) { return widen(f16{u16(x)}); }
DEVICE float second_f16(u32 x) { return widen(f16{u16(x >> 16)}); }
DEVICE u32 pack_f16(float first, float second) {
    f16 x, y;
    narrow(x, first);
    narrow(y, second);
    return x.bits | u32(y.bits) << 16;
}
DEVICE u32 multiply_f16(u32 x, u32 y) {
    // Products of two f16 are exact in f32.
    return pack_f16(first_f16(x) * first_f16(y), second_f16(x) * second_f16(y));
}
DEVICE float is_below(float x, float y) { return x < y ? 1.f : 0.f; }
DEVICE float reciprocal_root(float x) { return float(1 / __builtin_sqrt(double(x))); }
DEVICE float reciprocal(float x) { return 1.f / x; }
DEVICE float least_of(float x, float y, float z) {
    const int a = __float_as_int(x), b = __float_as_int(y), c = __float_as_int(z);
    const int least = a < b ? a : b;
    return __int_as_float(least < c ? least : c);
}

DEVICE u32 add_min(u32 a, u32 b, u32 c) { return a + b < c ? a + b : c; }
