// Squared distances of f16 rows by tiles of 64 x 64, and the least of each row: double-buffered cp.async, ldmatrix,
// mma.sync, shuffles and atomics. tile_<n> has bug n of tests/seeded_bugs.rs; tile_0 has none.
//   out[i][j] = |x_i|^2 + |y_j|^2 - 2 x_i . y_j,   least[i] = min_j of its bits (distances are not negative)
#include "platform.cuh"

struct Args {
    const f16 *x, *y;  // [m, k], [n, k]; k a multiple of 8
    float* out;        // [m, n]
    u32* least;        // [m], at first 0xffffffff
    int m, n, k;
    int unused;
};

constexpr int TILE = 64, DEPTH = 32, THREADS = 128;

template <int PAD> struct Tiles {
    f16 x[2][TILE][DEPTH + PAD], y[2][TILE][DEPTH + PAD];
    float x_norm[TILE], y_norm[TILE];
    u32 least[TILE];
};

template <int BUG, int PAD> DEVICE void load_tile(f16 (*to)[DEPTH + PAD], const f16* from, int row0, int rows, int k0, int k) {
    constexpr int CHUNKS = DEPTH / 8, LOADED = BUG == 20 ? TILE + 1 : TILE;
    for (int i = threadIdx.x; i < LOADED * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, column = i % CHUNKS * 8;
        const bool valid = (BUG == 5 || row0 + row < rows) && (BUG == 6 || k0 + column < k);
        const f16* p = from + i64(row0 + row) * k + k0 + column - (BUG == 7 ? 8 : 0);
        copy_async16(&to[row][column], valid ? p : from, valid);
    }
}

template <int BUG> DEVICE void tile(const Args& args) {
    constexpr int PAD = BUG == 17 ? 4 : 8;
    SHARED_DYNAMIC(Tiles<PAD>, s);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int across = (args.n + TILE - 1) / TILE;
    const int m0 = int(blockIdx.x) / across * TILE, n0 = int(blockIdx.x) % across * TILE;
    const int warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
    float sum[2][4][4] = {};
    float x_part[TILE / 4] = {}, y_part[TILE / 4] = {};  // of rows warp, warp + 4, ...
    if (threadIdx.x < TILE) s.least[threadIdx.x] = 0xffffffff;

    const int steps = (args.k + DEPTH - 1) / DEPTH;
    load_tile<BUG, PAD>(s.x[0], args.x, m0, args.m, 0, args.k);
    load_tile<BUG, PAD>(s.y[0], args.y, n0, args.n, 0, args.k);
    if (BUG != 4) copy_async_commit();
    for (int step = 0; step < steps; ++step) {
        const int now = step % 2, used = BUG == 12 ? now ^ 1 : now;
        if (step + 1 < steps) {
            load_tile<BUG, PAD>(s.x[now ^ 1], args.x, m0, args.m, (step + 1) * DEPTH, args.k);
            load_tile<BUG, PAD>(s.y[now ^ 1], args.y, n0, args.n, (step + 1) * DEPTH, args.k);
        }
        copy_async_commit();
        if (BUG != 3) copy_async_wait<1>();
        if (BUG != 1) __syncthreads();
        for (int i = 0; i < TILE / 4; ++i) {
            const float x = widen(s.x[used][warp + 4 * i][lane]), y = widen(s.y[used][warp + 4 * i][lane]);
            x_part[i] += x * x;
            y_part[i] += y * y;
        }
        for (int k = 0; k < DEPTH; k += 16) {
            u32 a[2][4], b[2][4];
            for (int i = 0; i < 2; ++i)
                load_matrix_x4(a[i], &s.x[used][warp_m + i * 16 + lane % 16][k + (BUG == 8 ? lane % 2 : lane / 16) * 8]);
            for (int j = 0; j < 2; ++j)
                load_matrix_x4(b[j], &s.y[used][warp_n + j * 16 + lane % 8 + lane / 16 * 8][k + (BUG == 9 ? lane / 16 : lane / 8 % 2) * 8]);
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j) mma_f16_m16n8k16(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        if (BUG != 2) __syncthreads();
    }
    for (int i = 0; i < TILE / 4; ++i) {
        float x = x_part[i], y = y_part[i];
        for (int offset = 16; offset > 0; offset /= 2) {
            x += __shfl_xor_sync(BUG == 13 ? 0xffff : 0xffffffff, x, offset);
            y += __shfl_xor_sync(0xffffffff, y, offset);
        }
        if (lane == 0 && !(BUG == 18 && i == TILE / 4 - 1)) s.x_norm[warp + 4 * i] = x;
        if (lane == 0) s.y_norm[warp + 4 * i] = y;
    }
    if (BUG == 14) {
        if (warp == 0) __syncthreads();
    } else if (BUG != 10) {
        __syncthreads();
    }
    for (int i = 0; i < 2; ++i)
        for (int half = 0; half < 2; ++half) {
            const int row = warp_m + i * 16 + half * 8 + lane / 4;
            float least = __int_as_float(0x7f800000);
            for (int j = 0; j < 4; ++j)
                for (int e = 0; e < 2; ++e) {
                    const int column = warp_n + j * 8 + lane % 4 * 2 + e;
                    const float d = fmaxf(s.x_norm[row] + s.y_norm[column] - 2 * sum[i][j][half * 2 + e], 0);
                    if ((BUG == 21 || m0 + row < args.m) && (BUG == 22 || n0 + column < args.n)) {
                        const i64 at = i64(m0 + row) * args.n + n0 + column;
                        args.out[BUG == 19 ? i64(short(at)) : at] = d;
                        least = fminf(least, d);
                    }
                }
            least = fminf(least, __shfl_xor_sync(0xffffffff, least, 1));
            least = fminf(least, __shfl_xor_sync(0xffffffff, least, 2));
            const u32 bits = __float_as_uint(least);
            if (lane % 4 == 0) {
                if (BUG != 15) atomicMin(&s.least[row], bits);
                else if (bits < s.least[row]) s.least[row] = bits;
            }
        }
    if (BUG != 11) __syncthreads();
    if (threadIdx.x < TILE && m0 + int(threadIdx.x) < args.m) {
        u32* least = &args.least[m0 + threadIdx.x];
        if (BUG != 16) atomicMin(least, s.least[threadIdx.x]);
        else if (s.least[threadIdx.x] < *least) *least = s.least[threadIdx.x];
    }
}

#define TILE_KERNEL(bug) KERNEL(tile_##bug, THREADS, const Args args) { tile<bug>(args); }
TILE_KERNEL(0) TILE_KERNEL(1) TILE_KERNEL(2) TILE_KERNEL(3) TILE_KERNEL(4) TILE_KERNEL(5) TILE_KERNEL(6) TILE_KERNEL(7)
TILE_KERNEL(8) TILE_KERNEL(9) TILE_KERNEL(10) TILE_KERNEL(11) TILE_KERNEL(12) TILE_KERNEL(13) TILE_KERNEL(14)
TILE_KERNEL(15) TILE_KERNEL(16) TILE_KERNEL(17) TILE_KERNEL(18) TILE_KERNEL(19) TILE_KERNEL(20) TILE_KERNEL(21)
TILE_KERNEL(22)
