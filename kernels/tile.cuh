// The Gram engine of mined losses: TILE x TILE products of rows of two prepared batches (batch.cuh), on tensor cores.
// Rows come as planes of bytes, SLAB bytes at a time by cp.async, STAGES slabs in flight; each of the four warps of a
// block computes a quarter of the tile. A slab is read by ldmatrix as 16-byte pieces whatever the numbers are: 32 bytes
// of a row are one mma's worth of 16-bit numbers (16) as well as of tf32 (8).
#pragma once
#include "platform.cuh"

#if !defined(TERCET_TILE) || !defined(TERCET_SLAB)
#error "TERCET_TILE and TERCET_SLAB come from src/constants.rs"
#endif
#define TILE_THREADS 128

constexpr int TILE = TERCET_TILE, SLAB = TERCET_SLAB, STAGES = 3, QUARTER = TILE / 2;
constexpr int ROW_FRAGMENTS = QUARTER / 16, COLUMN_FRAGMENTS = QUARTER / 8;
static_assert(TILE % 32 == 0 && SLAB == 64, "the swizzle below is for 64 bytes a row");

// ---- products: how numbers are stored in planes, and multiplied ----

DEVICE u32 tf32_bits(float x) {
    // To nearest, ties away from zero; the tensor core ignores the 13 low bits.
    return (__float_as_uint(x) + 0x1000) & 0xffffe000;
}

// f32 as hi + lo / 2^11 in f16: 22 bits of each number against its row's largest. hi hi + (hi lo + lo hi) / 2^11 leaves
// out 2^-22 of a product: the error of an f32 computation.
struct Split {
    static constexpr int planes = 2, bytes = 2;
    static constexpr bool rounds = false;
    static constexpr float LO = 2048.f;
    static DEVICE float encode(float x, u8* const (&to)[2], i64 at) {
        f16 hi, lo;
        narrow(hi, x);
        narrow(lo, (x - widen(hi)) * LO);
        reinterpret_cast<f16*>(to[0])[at] = hi;
        reinterpret_cast<f16*>(to[1])[at] = lo;
        return x;
    }
    static DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_f16_m16n8k16(d, a, b0, b1); }
};
template <class T> constexpr bool is_bf16 = false;
template <> constexpr bool is_bf16<bf16> = true;

// One product of 16-bit numbers; `encode` returns what it has made of x.
template <class T> struct Half {
    static constexpr int planes = 1, bytes = 2;
    static constexpr bool rounds = true;
    static DEVICE float encode(float x, u8* const (&to)[2], i64 at) {
        T y;
        narrow(y, x);
        reinterpret_cast<T*>(to[0])[at] = y;
        return widen(y);
    }
    static DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        if constexpr (is_bf16<T>) mma_bf16_m16n8k16(d, a, b0, b1);
        else mma_f16_m16n8k16(d, a, b0, b1);
    }
};
struct Tf32 {
    static constexpr int planes = 1, bytes = 4;
    static constexpr bool rounds = true;
    static DEVICE float encode(float x, u8* const (&to)[2], i64 at) {
        const u32 y = tf32_bits(x);
        reinterpret_cast<u32*>(to[0])[at] = y;
        return __uint_as_float(y);
    }
    static DEVICE void multiply(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma_tf32_m16n8k8(d, a, b0, b1); }
};

// f32 on CUDA cores, to check the others against: no tensor core, no rounding of what is multiplied.
struct Plain {
    static constexpr int planes = 1, bytes = 4;
    static constexpr bool rounds = false;
    static DEVICE float encode(float x, u8* const (&to)[2], i64 at) {
        reinterpret_cast<float*>(to[0])[at] = x;
        return x;
    }
};
template <class P> constexpr bool is_plain = false;
template <> constexpr bool is_plain<Plain> = true;

// ---- the tile ----

// A prepared batch as the engine sees it: planes of `slabs` x SLAB bytes a row, rows of whole tiles.
struct Operand {
    const u8* plane[2];
    u32 slabs;
};

// Shared memory: [stage][side][plane][row][SLAB].
template <class P> struct TileBuffers {
    alignas(128) u8 bytes[STAGES][2][P::planes][TILE * SLAB];
};

// Where 16-byte piece `piece` of row `row` lies: two rows fill the 32 banks, and pieces move so that the eight rows of
// an 8x8 matrix do not meet.
DEVICE int swizzled(int row, int piece) { return row * SLAB + ((piece ^ (row >> 1 & 3)) << 4); }

template <class P> struct GramTile {
    float sum[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];

    static DEVICE void fetch(TileBuffers<P>& buffers, int stage, const Operand (&side)[2], const u32 (&first)[2], u32 slab) {
        constexpr int PIECES = SLAB / 16;
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int p = 0; p < P::planes; ++p)
                for (int i = threadIdx.x; i < TILE * PIECES; i += TILE_THREADS) {
                    const int row = i / PIECES, piece = i % PIECES;
                    const u8* from = side[s].plane[p] + (i64(first[s]) + row) * side[s].slabs * SLAB + i64(slab) * SLAB + piece * 16;
                    copy_async16(&buffers.bytes[stage][s][p][swizzled(row, piece)], from, true);
                }
        copy_async_commit();
    }

    // The products of rows first[0].. of side 0 with rows first[1].. of side 1. All threads of the block must call; the
    // buffers are free again when it returns.
    DEVICE void run(TileBuffers<P>& buffers, const Operand (&side)[2], const u32 (&first)[2]) {
        // Tensor cores truncate what they add: their sums are kept short, and added up here.
        constexpr int SHORT = 256 * P::bytes / SLAB;
        float part[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4], cross[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];
        clear(sum);
        clear(part);
        clear(cross);
        const u32 slabs = side[0].slabs;
#pragma unroll
        for (u32 s = 0; s < STAGES - 1; ++s) {
            if (s < slabs) fetch(buffers, s, side, first, s);
            else copy_async_commit();
        }
        for (u32 slab = 0; slab < slabs; ++slab) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();  // this slab is here, and everyone is done with the one whose place is filled next
            if (slab + STAGES - 1 < slabs) fetch(buffers, (slab + STAGES - 1) % STAGES, side, first, slab + STAGES - 1);
            else copy_async_commit();
            if constexpr (is_plain<P>) multiply_plainly(buffers, slab % STAGES, part);
            else multiply(buffers, slab % STAGES, part, cross);
            if (slab % SHORT == SHORT - 1) {
                add(part, 1.f);
                clear(part);
            }
        }
        add(part, 1.f);
        if constexpr (P::planes == 2) add(cross, 1.f / P::LO);
        copy_async_wait<0>();
        __syncthreads();
    }

    // f(slot, row, column, product) for the numbers that this thread holds; row and column within the tile. Where f
    // returns true, `later(slot, row, column)` is called afterwards: rare work, compiled once and not for every number.
    template <class F, class G> DEVICE void each(F f, G later) const {
        static_assert(ROW_FRAGMENTS * COLUMN_FRAGMENTS * 4 <= 64, "one bit for each number");
        u64 marked = 0;
#pragma unroll
        for (int k = 0; k < ROW_FRAGMENTS * COLUMN_FRAGMENTS * 4; ++k) {
            const int j = k % COLUMN_FRAGMENTS, e = k / COLUMN_FRAGMENTS % 4, i = k / COLUMN_FRAGMENTS / 4;
            if (f(slot_of(k), row_of(slot_of(k)), column_of(k), sum[i][j][e])) marked |= u64(1) << k;
        }
#pragma unroll 1
        for (int k = 0; marked; ++k, marked >>= 1)
            if (marked & 1) later(slot_of(k), row_of(slot_of(k)), column_of(k));
    }
    // The rows that this thread holds numbers of; `each` passes the same slots.
    static constexpr int ROWS = ROW_FRAGMENTS * 2;
    static DEVICE int slot_of(int k) { return k / COLUMN_FRAGMENTS / 4 * 2 + k / COLUMN_FRAGMENTS % 4 / 2; }
    static DEVICE int column_of(int k) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        return warp % 2 * QUARTER + k % COLUMN_FRAGMENTS * 8 + lane % 4 * 2 + k / COLUMN_FRAGMENTS % 2;
    }
    static DEVICE int row_of(int slot) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        return warp / 2 * QUARTER + slot / 2 * 16 + slot % 2 * 8 + lane / 4;
    }

    static DEVICE void clear(float (&x)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4]) {
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) x[i][j][e] = 0.f;
    }
    DEVICE void add(const float (&x)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4], float factor) {
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[i][j][e] += x[i][j][e] * factor;
    }
    static DEVICE void multiply_plainly(const TileBuffers<P>& buffers, int stage, float (&part)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4]) {
        const auto number = [&](int side, int row, int k) {
            return *reinterpret_cast<const float*>(&buffers.bytes[stage][side][0][swizzled(row, k / 4) + k % 4 * 4]);
        };
#pragma unroll 4
        for (int k = 0; k < SLAB / 4; ++k) {
            float x[ROWS], y[COLUMN_FRAGMENTS][2];
#pragma unroll
            for (int slot = 0; slot < ROWS; ++slot) x[slot] = number(0, row_of(slot), k);
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) y[j][e] = number(1, column_of(j + e * COLUMN_FRAGMENTS), k);
#pragma unroll
            for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) part[i][j][e] += x[i * 2 + e / 2] * y[j][e % 2];
        }
    }
    static DEVICE void multiply(const TileBuffers<P>& buffers, int stage, float (&part)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4],
                                float (&cross)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4]) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int step = 0; step < SLAB / 32; ++step) {
            u32 a[P::planes][ROW_FRAGMENTS][4];
#pragma unroll
            for (int p = 0; p < P::planes; ++p)
#pragma unroll
                for (int i = 0; i < ROW_FRAGMENTS; ++i) {
                    const int row = warp / 2 * QUARTER + i * 16 + lane % 16;
                    load_matrix_x4(a[p][i], &buffers.bytes[stage][0][p][swizzled(row, step * 2 + lane / 16)]);
                }
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; j += 2) {
                u32 b[P::planes][4];
#pragma unroll
                for (int p = 0; p < P::planes; ++p) {
                    const int row = warp % 2 * QUARTER + j * 8 + lane / 16 * 8 + lane % 8;
                    load_matrix_x4(b[p], &buffers.bytes[stage][1][p][swizzled(row, step * 2 + lane / 8 % 2)]);
                }
#pragma unroll
                for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                    for (int n = 0; n < 2; ++n) {
                        P::multiply(part[i][j + n], a[0][i], b[0][n * 2], b[0][n * 2 + 1]);
                        if constexpr (P::planes == 2) {
                            P::multiply(cross[i][j + n], a[0][i], b[1][n * 2], b[1][n * 2 + 1]);
                            P::multiply(cross[i][j + n], a[1][i], b[0][n * 2], b[0][n * 2 + 1]);
                        }
                    }
            }
        }
    }
};
