// What each wrapped instruction does, lane by lane. Inputs, grids and expected numbers: tests/it/conformance/probes.rs.
// Every kernel is legal on a device and gives the same numbers in whatever order its threads run.
#include "platform.cuh"

struct Args {
    const u32* in;
    u32* out;
};

constexpr u32 ALL = 0xffffffff;
DEVICE u64 wide(u32 high, u32 low) { return u64(high) << 32 | low; }
DEVICE double as_double(const u32* p) { return __longlong_as_double(i64(wide(p[1], p[0]))); }
DEVICE void put_double(u32* p, double x) {
    const u64 bits = u64(__double_as_longlong(x));
    p[0] = u32(bits);
    p[1] = u32(bits >> 32);
}

// ---- a warp ----

KERNEL(shuffles, 32, const Args args) {
    const int lane = threadIdx.x;
    const u32 x = args.in[lane];
    u32* out = args.out + lane * 16;
    out[0] = __shfl_sync(ALL, x, 5);
    out[1] = __shfl_sync(ALL, x, 37);
    out[2] = __shfl_sync(ALL, x, int(x % 32));
    out[3] = __shfl_xor_sync(ALL, x, 3);
    out[4] = __shfl_xor_sync(ALL, x, 16);
    out[5] = __shfl_down_sync(ALL, x, 4);
    out[6] = __shfl_up_sync(ALL, x, 4);
    out[7] = u32(__shfl_xor_sync(ALL, wide(x, 7), 1) >> 32);
    put_double(out + 8, __shfl_down_sync(ALL, double(x) + 0.25, 1));
    out[10] = __float_as_uint(__shfl_up_sync(ALL, float(x) + 0.5f, 1));
    const u32 quarter = 0xffu << (lane / 8 * 8);
    out[11] = __shfl_xor_sync(quarter, x, 7);
    // Lanes that have exited are not waited for; masks may differ between branches.
    if (lane >= 24) return;
    out[12] = __reduce_add_sync(ALL, x);
    if (lane < 8) {
        __syncwarp(0xff);
        out[13] = __shfl_sync(0xff, x, 7);
    } else {
        out[13] = __shfl_sync(0xffff00, x, 8);
    }
    __syncwarp();
    out[14] = x;
}

// Votes and reductions under three partitions of the warp: whole, halves, and lanes with the same lane % 3.
KERNEL(votes, 32, const Args args) {
    const int lane = threadIdx.x;
    const u32 x = args.in[lane];
    const u32 masks[3] = {ALL, lane < 16 ? 0xffffu : 0xffff0000u, 0x49249249u << lane % 3};
#pragma unroll
    for (int i = 0; i < 3; ++i) {
        u32* out = args.out + lane * 32 + i * 10;
        const u32 mask = masks[i];
        out[0] = __ballot_sync(mask, x % 2);
        out[1] = __all_sync(mask, x % 64 != 63) != 0;
        out[2] = __any_sync(mask, x % 64 == 63) != 0;
        out[3] = __match_any_sync(mask, x % 4);
        out[4] = __reduce_add_sync(mask, x * 0x01000193u);
        out[5] = __reduce_min_sync(mask, x);
        out[6] = __reduce_max_sync(mask, x);
        out[7] = __reduce_or_sync(mask, x);
        out[8] = __reduce_and_sync(mask, x | 64);
        out[9] = __match_any_sync(mask, x);
    }
}

// ---- numbers ----

// in: f32 bits, whose low half is also taken as 16-bit floats.
KERNEL(conversions, 256, const Args args) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, x = args.in[i];
    const f16 h = {u16(x)};
    const bf16 b = {u16(x)};
    f16 h2;
    bf16 b2;
    narrow(h2, __uint_as_float(x));
    narrow(b2, __uint_as_float(x));
    u32* out = args.out + i * 4;
    out[0] = __float_as_uint(widen(h));
    out[1] = __float_as_uint(widen(b));
    out[2] = h2.bits;
    out[3] = b2.bits;
}

// in: three f32.
KERNEL(arithmetic, 64, const Args args) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const float a = __uint_as_float(args.in[i * 3]), b = __uint_as_float(args.in[i * 3 + 1]), c = __uint_as_float(args.in[i * 3 + 2]);
    u32* out = args.out + i * 9;
    out[0] = __float_as_uint(fmaf(a, b, c));
    out[1] = __float_as_uint(a / b);
    out[2] = __float_as_uint(sqrt(a));
    out[3] = __float_as_uint(fminf(a, b));
    out[4] = __float_as_uint(fmaxf(a, b));
    out[5] = __float_as_uint(a + b);
    out[6] = __float_as_uint(a * b);
    out[7] = __float_as_uint(pow(fabs(a), b));
    out[8] = __float_as_uint(rounded_product(a, b) + c);
}

// in: three words, each of them two f16, an f32 and an integer.
KERNEL(single_instructions, 64, const Args args) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, *in = args.in + i * 3;
    const float x = __uint_as_float(in[0]), y = __uint_as_float(in[1]), z = __uint_as_float(in[2]);
    const u32 products = multiply_f16(in[0], in[1]), packed = pack_f16(x, y);
    u32* out = args.out + i * 9;
    out[0] = products & 0xffff;
    out[1] = products >> 16;
    out[2] = packed & 0xffff;
    out[3] = packed >> 16;
    out[4] = __float_as_uint(first_f16(in[2]));
    out[5] = __float_as_uint(second_f16(in[2]));
    out[6] = __float_as_uint(is_below(x, y));
    out[7] = __float_as_uint(least_of(x, y, z));
    out[8] = add_min(in[0], in[1], in[2]);
}

// in: a normal f32 that has a normal reciprocal.
KERNEL(reciprocals, 64, const Args args) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const float x = __uint_as_float(args.in[i]);
    args.out[i * 2] = __float_as_uint(reciprocal_root(fabs(x)));
    args.out[i * 2 + 1] = __float_as_uint(reciprocal(x));
}

// in: three f64, low word first.
KERNEL(arithmetic_f64, 64, const Args args) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const double a = as_double(args.in + i * 6), b = as_double(args.in + i * 6 + 2), c = as_double(args.in + i * 6 + 4);
    u32* out = args.out + i * 18;
    put_double(out, fma(a, b, c));
    put_double(out + 2, a / b);
    put_double(out + 4, sqrt(a));
    put_double(out + 6, fmin(a, b));
    put_double(out + 8, fmax(a, b));
    put_double(out + 10, exp(a));
    put_double(out + 12, log(a));
    out[14] = __float_as_uint(float(a));
    put_double(out + 16, rounded_product(a, b) + c);
}

// ---- atomics: what is left, and the set of values that were returned ----

KERNEL(atomics, 64, const Args args) {
    SHARED(u32, counts, 2);
    if (threadIdx.x < 2) counts[threadIdx.x] = 0;
    __syncthreads();
    const u32 x = args.in[threadIdx.x % 32] + threadIdx.x, turn = blockIdx.x * 64 + threadIdx.x;
    u32* out = args.out;
    int* signed_out = reinterpret_cast<int*>(out + 16);
    u64* wide_out = reinterpret_cast<u64*>(out + 32);
    atomicAdd(&out[0], x);
    atomicMin(&out[1], x);
    atomicMax(&out[2], x);
    atomicOr(&out[3], 1u << threadIdx.x % 32);
    atomicAnd(&out[4], ~(1u << threadIdx.x % 32));
    for (u32 old = 0, seen; (seen = atomicCAS(&out[5], old, old + 1)) != old;) old = seen;
    // Each value except the last one is returned once.
    const u32 ticket = atomicAdd(&out[6], 1u);
    atomicOr(&out[8 + ticket / 32], 1u << ticket % 32);
    const u32 ordered = add_release_acquire(&out[7], 1);
    atomicOr(&out[12 + ordered / 32], 1u << ordered % 32);
    atomicAdd(&signed_out[0], int(x) - 200);
    atomicMin(&signed_out[1], int(x) - 200);
    atomicMax(&signed_out[2], int(x) - 200);
    if (turn == 1) out[19] = atomicExch(&out[20], 77u);
    atomicAdd(&counts[0], x);
    atomicMax(&counts[1], x);
    atomicMin(&wide_out[0], wide(x, threadIdx.x));
    atomicMax(&wide_out[1], wide(x, threadIdx.x));
    atomicAdd(&wide_out[2], u64(x) << 20);
    atomicOr(&wide_out[3], u64(1) << threadIdx.x);
    atomicAnd(&wide_out[4], ~(u64(1) << threadIdx.x));
    for (u64 old = 0, seen; (seen = atomicCAS(&wide_out[5], old, old + (u64(1) << 33))) != old;) old = seen;
    if (turn == 65) wide_out[6] = atomicExch(&wide_out[7], wide(5, 6));
    __syncthreads();
    if (threadIdx.x < 2) args.out[48 + blockIdx.x * 2 + threadIdx.x] = counts[threadIdx.x];
}

// Two halves of a block meet at barriers of their own.
KERNEL(named_barriers, 128, const Args args) {
    SHARED(u32, numbers, 128);
    const int half = threadIdx.x / 64;
    for (int round = 0; round < 3 + half; ++round) {
        numbers[threadIdx.x] = args.in[threadIdx.x] + round;
        named_barrier(1 + half, 64);
        const u32 other = numbers[half * 64 + (threadIdx.x + 33) % 64];
        named_barrier(1 + half, 64);
        args.out[threadIdx.x * 4 + round] = other;
    }
}

// ---- tiles ----

// Two groups of copies; the first is waited for alone. in: 256 words, four valid if bit 31 of the first is not set.
KERNEL(copies, 32, const Args args) {
    using Row = Pack<u32, 4>;
    SHARED(Row, rows, 64);
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; ++i) rows[lane * 2 + i / 4].v[i % 4] = 0xabababab;
    __syncwarp();
    for (int group = 0; group < 2; ++group) {
        const u32* from = args.in + group * 128 + lane * 4;
        copy_async16(&rows[group * 32 + lane], from, from[0] >> 31 == 0);
        copy_async_commit();
    }
    copy_async_wait<1>();
    __syncwarp();
    for (int i = 0; i < 4; ++i) args.out[lane * 8 + i] = rows[lane ^ 1].v[i];
    copy_async_wait<0>();
    __syncwarp();
    for (int i = 0; i < 4; ++i) args.out[lane * 8 + 4 + i] = rows[32 + (lane ^ 1)].v[i];
}

// Copies of 4 and 8 bytes, of 16 behind both addresses, and of those that are wanted. in: 256 words.
KERNEL(few_copies, 32, const Args args) {
    using Row = Pack<u32, 4>;
    SHARED(Row, rows, 128);
    const int lane = threadIdx.x;
    for (int group = 0; group < 4; ++group)
        for (int i = 0; i < 4; ++i) rows[group * 32 + lane].v[i] = 0xabababab;
    __syncwarp();
    const u32* from = args.in + lane * 4;
    const SharedAddress to = kept(shared_address(&rows[lane]));
    copy_async_few<4>(to, from + 1);
    copy_async_few<8>(to + 8, from + 2);
    copy_async16_at<512>(to, from);
    copy_async16_if(lane % 3 == 0, &rows[64 + lane], from);
    copy_async16_at_if<-16>(lane % 2 == 1, to + 96 * 16, from);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    for (int group = 0; group < 4; ++group)
        for (int i = 0; i < 4; ++i) args.out[lane * 16 + group * 4 + i] = rows[group * 32 + lane].v[i];
}

// What is not valid may lie anywhere: only even lanes copy something.
KERNEL(copies_from_nowhere, 32, const Args args) {
    using Row = Pack<u32, 4>;
    SHARED(Row, rows, 32);
    const int lane = threadIdx.x;
    for (int i = 0; i < 4; ++i) rows[lane].v[i] = 0xabababab;
    const bool valid = lane % 2 == 0;
    copy_async16(&rows[lane], valid ? args.in + lane * 4 : args.in + (i64(1) << 40), valid);
    copy_async_commit();
    copy_async_wait<0>();
    for (int i = 0; i < 4; ++i) args.out[lane * 4 + i] = rows[lane].v[i];
}

// ldmatrix, both ways, of four 8x8 matrices in[8 j + row] of 8 numbers of 16 bits.
KERNEL(matrices, 32, const Args args) {
    using Row = Pack<u32, 4>;
    SHARED(Row, rows, 32);
    const int lane = threadIdx.x;
    copy_async16(&rows[lane], args.in + lane * 4, true);
    copy_async_commit();
    copy_async_wait<0>();
    __syncwarp();
    u32 r[4], t[4];
    load_matrix_x4(r, &rows[lane]);
    load_matrix_x4_transposed(t, &rows[lane]);
    for (int i = 0; i < 4; ++i) {
        args.out[lane * 8 + i] = r[i];
        args.out[lane * 8 + 4 + i] = t[i];
    }
}

// in[lane]: 4 registers of A, 2 of B, 4 of C; out[lane]: D. One product per block.
KERNEL(product_f16, 32, const Args args) {
    const u32 place = blockIdx.x * 32 + threadIdx.x, *in = args.in + place * 10;
    const u32 a[4] = {in[0], in[1], in[2], in[3]};
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = __uint_as_float(in[6 + i]);
    mma_f16_m16n8k16(d, a, in[4], in[5]);
    for (int i = 0; i < 4; ++i) args.out[place * 4 + i] = __float_as_uint(d[i]);
}

// The same without C.
KERNEL(product_f16_first, 32, const Args args) {
    const u32 place = blockIdx.x * 32 + threadIdx.x, *in = args.in + place * 10;
    const u32 a[4] = {in[0], in[1], in[2], in[3]};
    float d[4];
    mma_f16_m16n8k16_first(d, a, in[4], in[5]);
    for (int i = 0; i < 4; ++i) args.out[place * 4 + i] = __float_as_uint(d[i]);
}

struct Numbers { u32 numbers[1024]; };
KERNEL(dynamic_shared, 32, const Args args) {
    SHARED_DYNAMIC(Numbers, shared);
    for (int i = threadIdx.x; i < 1024; i += 32) shared.numbers[i] = args.in[i];
    __syncwarp();
    for (int i = threadIdx.x; i < 1024; i += 32) args.out[i] = shared.numbers[1023 - i];
}
