// How many of one instruction a multiprocessor executes in a clock: the rates of report/src/work.rs, as a device has them. Each kernel
// repeats one instruction, in chains that do not wait for each other, and writes the clocks that a block took and how many a warp
// executed. tests/it/rates.rs runs them.
#include "platform.cuh"

constexpr int THREADS = 512, CHAINS = 8, ROUNDS = 256;
constexpr u32 ALL = 0xffffffff;

struct Args {
    const u32* in;  // 2^20 words, of which a kernel reads what it likes
    u32* out;       // a word of each thread, which nobody reads: so that no instruction is left out
    u64* clocks;    // of each block, and how many of the instruction each warp executed
    u64* words;     // a word of each thread
};

// Runs `round`, which executes the instruction so many times, ROUNDS times, and writes the clocks.
template <class Round> DEVICE void timed(const Args& args, u32 in_a_round, Round round) {
    __syncthreads();
    const i64 begin = clock64();
#pragma unroll 1
    for (int i = 0; i < ROUNDS; ++i) round(i);
    __syncthreads();
    const i64 end = clock64();
    if (threadIdx.x > 0) return;
    args.clocks[blockIdx.x * 2] = u64(end - begin);
    args.clocks[blockIdx.x * 2 + 1] = in_a_round * ROUNDS;
}

DEVICE u32 place() { return blockIdx.x * THREADS + threadIdx.x; }

// One instruction in each chain: x[j] becomes op(x[j], x[j + 1], x[j + 2]).
template <class Op> DEVICE void chains(const Args& args, Op op) {
    float x[CHAINS];
    for (int j = 0; j < CHAINS; ++j) x[j] = __uint_as_float(args.in[(place() * CHAINS + j) & 0xfffff]);
    timed(args, CHAINS, [&](int) {
#pragma unroll
        for (int j = 0; j < CHAINS; ++j) x[j] = op(x[j], x[(j + 1) % CHAINS], x[(j + 2) % CHAINS]);
    });
    float sum = 0;
    for (int j = 0; j < CHAINS; ++j) sum += x[j];
    args.out[place()] = __float_as_uint(sum);
}

KERNEL(rate_multiply_add, THREADS, const Args args) {
    chains(args, [](float x, float y, float z) { return fmaf(x, y, z); });
}
KERNEL(rate_minimum, THREADS, const Args args) {
    chains(args, [](float x, float y, float) { return fminf(x, y); });
}
KERNEL(rate_least_of, THREADS, const Args args) {
    chains(args, [](float x, float y, float z) { return least_of(x, y, z); });
}
KERNEL(rate_add_min, THREADS, const Args args) {
    chains(args, [](float x, float y, float z) {
        return __uint_as_float(add_min(__float_as_uint(x), __float_as_uint(y), __float_as_uint(z)));
    });
}
KERNEL(rate_is_below, THREADS, const Args args) {
    chains(args, [](float x, float y, float) { return is_below(x, y); });
}
KERNEL(rate_pack_f16, THREADS, const Args args) {
    chains(args, [](float x, float y, float) { return __uint_as_float(pack_f16(x, y)); });
}
KERNEL(rate_multiply_f16, THREADS, const Args args) {
    chains(args, [](float x, float y, float) { return __uint_as_float(multiply_f16(__float_as_uint(x), __float_as_uint(y))); });
}
KERNEL(rate_reciprocal_root, THREADS, const Args args) {
    chains(args, [](float x, float, float) { return reciprocal_root(x); });
}
KERNEL(rate_shuffle, THREADS, const Args args) {
    chains(args, [](float x, float, float) { return __uint_as_float(__shfl_xor_sync(ALL, __float_as_uint(x), 1)); });
}

KERNEL(rate_product_f16, THREADS, const Args args) {
    float d[CHAINS][4];
    u32 a[4];
    for (int i = 0; i < 4; ++i) a[i] = args.in[threadIdx.x * 4 + i];
    for (int j = 0; j < CHAINS; ++j)
        for (int i = 0; i < 4; ++i) d[j][i] = 0;
    timed(args, CHAINS, [&](int) {
#pragma unroll
        for (int j = 0; j < CHAINS; ++j) mma_f16_m16n8k16(d[j], a, a[j % 4], a[(j + 1) % 4]);
    });
    float sum = 0;
    for (int j = 0; j < CHAINS; ++j)
        for (int i = 0; i < 4; ++i) sum += d[j][i];
    args.out[place()] = __float_as_uint(sum);
}

// ldmatrix of four matrices. Rows of 144 bytes, so that eight of them lie in all banks.
KERNEL(rate_load_matrix, THREADS, const Args args) {
    using Row = Pack<u32, 4>;
    SHARED(Row, rows, 32 * 9);
    for (int i = threadIdx.x; i < 32 * 9; i += THREADS)
        for (int k = 0; k < 4; ++k) rows[i].v[k] = args.in[i * 4 + k];
    const SharedAddress at = kept(shared_address(&rows[threadIdx.x % 32 * 9]));
    u32 mixed = 0;
    timed(args, CHAINS, [&](int round) {
#pragma unroll
        for (int j = 0; j < CHAINS; ++j) {
            u32 r[4];
            load_matrix_x4(r, at + ((round + j) & 7) * 16); // equal loads would be one
            mixed ^= r[0] ^ r[1] ^ r[2] ^ r[3];
        }
    });
    args.out[place()] = mixed;
}

// Reads of 16 bytes from shared memory: SAME lanes read the same ones. Four additions go with each.
template <int SAME> DEVICE void shared_reads(const Args& args) {
    using Row = Pack<float, 4>;
    SHARED(Row, rows, 256);
    for (int i = threadIdx.x; i < 256; i += THREADS)
        for (int k = 0; k < 4; ++k) rows[i].v[k] = __uint_as_float(args.in[i * 4 + k]);
    float sum[4] = {};
    timed(args, CHAINS, [&](int round) {
#pragma unroll
        for (int j = 0; j < CHAINS; ++j) {
            const Row row = rows[(threadIdx.x % 32 / SAME + (round + j) * (32 / SAME)) % 256];
            for (int k = 0; k < 4; ++k) sum[k] += row.v[k];
        }
    });
    args.out[place()] = __float_as_uint(sum[0] + sum[1] + sum[2] + sum[3]);
}
KERNEL(rate_read_32_pieces, THREADS, const Args args) { shared_reads<1>(args); }
KERNEL(rate_read_4_pieces, THREADS, const Args args) { shared_reads<8>(args); }

// Minima of 64 bits in global memory, a place for each thread.
KERNEL(rate_atomic_minimum, THREADS, const Args args) {
    timed(args, 1, [&](int round) { atomicMin(&args.words[place()], u64(ROUNDS - round)); });
}

// Copies of 16 bytes a thread to shared memory from 4 MiB that lie in the L2 cache.
KERNEL(rate_copy_16_bytes, THREADS, const Args args) {
    using Row = Pack<u32, 4>;
    SHARED(Row, rows, 2 * THREADS);
    u32 at = place() * 4;
    timed(args, 1, [&](int round) {
        copy_async16(&rows[round % 2 * THREADS + threadIdx.x], args.in + (at & 0xffffc), true);
        copy_async_commit();
        copy_async_wait<1>();
        at += gridDim.x * THREADS * 4;
    });
    copy_async_wait<0>();
    args.out[place()] = rows[threadIdx.x].v[0];
}
