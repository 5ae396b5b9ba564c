// What each wrapped instruction does, lane by lane: in[lane] and out[lane] are rows of numbers.
#include "platform.cuh"

struct Args {
    const u32* in;
    u32* out;
    u64* wide;
    u32* narrow;
};

KERNEL(shuffles, 32, const Args args) {
    const int lane = threadIdx.x;
    const u32 x = args.in[lane], half = lane < 16 ? 0xffff : 0xffff0000;
    u32* out = args.out + lane * 16;
    out[0] = __shfl_sync(0xffffffff, x, 5);
    out[1] = __shfl_xor_sync(0xffffffff, x, 3);
    out[2] = __shfl_down_sync(0xffffffff, x, 4);
    out[3] = __shfl_up_sync(0xffffffff, x, 4);
    out[4] = __ballot_sync(half, x % 2);
    out[5] = u32(__all_sync(half, x < 1000)) | u32(__any_sync(half, x == args.in[3])) << 1;
    out[6] = __match_any_sync(half, x % 4);
    out[7] = __reduce_add_sync(half, x);
    out[8] = __reduce_min_sync(half, x);
    out[9] = __reduce_max_sync(half, x);
    out[10] = __reduce_or_sync(half, x);
    out[11] = __reduce_and_sync(half, x | 64);
    out[12] = u32(__shfl_xor_sync(0xffffffff, u64(x) << 32 | 7, 1) >> 32);
    // Lanes that have exited are not waited for.
    if (lane >= 24) return;
    out[13] = __reduce_add_sync(0xffffffff, x);
    if (lane < 8) {
        __syncwarp(0xff);
        out[14] = __shfl_sync(0xff, x, 7);
    } else {
        out[14] = __shfl_sync(0xffff00, x, 8);
    }
    __syncwarp();
    out[15] = x;
}

// The same result in whatever order threads run.
KERNEL(atomics, 64, const Args args) {
    const u32 x = args.in[threadIdx.x % 32] + threadIdx.x;
    atomicAdd(&args.narrow[0], x);
    atomicMin(&args.narrow[1], x);
    atomicMax(&args.narrow[2], x);
    atomicOr(&args.narrow[3], 1u << threadIdx.x % 32);
    atomicAnd(&args.narrow[4], ~(1u << threadIdx.x % 32));
    atomicMin(&args.wide[0], u64(x) << 32 | threadIdx.x);
    atomicMax(&args.wide[1], u64(x) << 32 | threadIdx.x);
    atomicAdd(&args.wide[2], u64(x) << 20);
    for (u32 old = 0, seen; (seen = atomicCAS(&args.narrow[5], old, old + 1)) != old;) old = seen;
}

// ldmatrix, both ways, of four 8x8 matrices in[8 j + row] of 8 numbers of 16 bits.
KERNEL(matrices, 32, const Args args) {
    SHARED(u32, rows, 32 * 4);
    const int lane = threadIdx.x;
    copy_async16(&rows[lane * 4], args.in + lane * 4, true);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    u32 r[4], t[4];
    load_matrix_x4(r, &rows[lane * 4]);
    load_matrix_x4_transposed(t, &rows[lane * 4]);
    for (int i = 0; i < 4; ++i) {
        args.out[lane * 8 + i] = r[i];
        args.out[lane * 8 + 4 + i] = t[i];
    }
}

// in[lane]: 4 registers of A, 2 of B, 4 of C; out[lane]: D.
#define PRODUCT(name, mma)                                                                 \
    KERNEL(name, 32, const Args args) {                                                    \
        const u32* in = args.in + threadIdx.x * 10;                                        \
        const u32 a[4] = {in[0], in[1], in[2], in[3]};                                     \
        float d[4];                                                                        \
        for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(in[6 + i]);                     \
        mma(d, a, in[4], in[5]);                                                           \
        for (int i = 0; i < 4; ++i) args.out[threadIdx.x * 4 + i] = __float_as_uint(d[i]); \
    }
PRODUCT(product_f16, mma_f16_m16n8k16)
PRODUCT(product_bf16, mma_bf16_m16n8k16)
PRODUCT(product_tf32, mma_tf32_m16n8k8)

// 16-bit floats: widened and narrowed again, and f32 narrowed.
KERNEL(conversions, 256, const Args args) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const f16 h = {u16(i)};
    const bf16 b = {u16(i)};
    f16 h2;
    bf16 b2;
    const float x = __uint_as_float(i * 0x10001u ^ i << 7);
    narrow(h2, x);
    narrow(b2, x);
    u32* out = args.out + i * 4;
    out[0] = __float_as_uint(widen(h));
    out[1] = __float_as_uint(widen(b));
    out[2] = h2.bits;
    out[3] = b2.bits;
}

// ---- what a device refuses, or nobody should do ----

KERNEL(misaligned, 32, const Args args) {
    const auto x = load<u32, 4>(args.in + 1);
    args.out[threadIdx.x] = x.v[0];
}
KERNEL(unwritten, 32, const Args args) { args.narrow[threadIdx.x] = args.out[threadIdx.x]; }
KERNEL(much_shared, 32, const Args args) {
    SHARED(u32, much, 13 * 1024);
    much[threadIdx.x] = 1;
}
struct Big { u32 numbers[1024]; };
KERNEL(dynamic_shared, 32, const Args args) {
    SHARED_DYNAMIC(Big, big);
    big.numbers[threadIdx.x] = args.in[threadIdx.x];
    args.out[threadIdx.x] = big.numbers[threadIdx.x];
}
