// The farthest positives of anchors of a large class, by a block: tiles of anchors x positives on CUDA cores, by difference as
// everywhere that a positive is looked at. The rows of a tile are read once for all of its anchors, through shared memory.
#pragma once
#include "batch.cuh"

// Classes of more rows. In a smaller one most threads of a tile have no positive, and a warp that takes an anchor alone is
// as fast.
constexpr u32 LARGE_CLASS = TERCET_LARGE_CLASS;
// Anchors of one class that a tile pays for.
constexpr u32 TILED_FROM = 4;
// Anchors that a block takes, at most.
constexpr u32 MOST_ANCHORS = 32;

// The farthest rows of a class of those that a block's anchors are compared with. The block's threads stand in groups of
// four anchors each, and a thread has one positive of a tile for its group's anchors.
struct Farthest {
    static constexpr u32 EACH = 4;                  // anchors of a thread
    static constexpr u32 LEAST = 8;                 // anchors of a block, at least
    static constexpr u32 STEP = 16, PITCH = STEP + 4;  // columns at a time; eight rows' 16 bytes are in 32 banks
    static constexpr u32 ROWS = LEAST + BATCH_THREADS * EACH / LEAST;  // of a tile of the fewest anchors and most positives
    static constexpr u32 PROMOTED = 128;            // columns that f32 adds up: a multiple of STEP
    static constexpr u32 WARPS = BATCH_THREADS / 32;

    // Writes the row of the farthest positive of each of `count` anchors from row `base` on to found[0 .. count]; their
    // class is the other rows first .. end. anchors: how many a tile has, 8, 16 or 32, and at least `count`. Of equal
    // distances the lowest row wins, which in one class has the lowest index. All threads of the block must call; found
    // is complete for all of them when it returns.
    static DEVICE void find(const Sides& sides, u32 kind, u32 base, u32 count, u32 anchors, u32 first, u32 end, u32* found) {
        SHARED(float, shared, 2 * ROWS * PITCH);
        SHARED(float, distance, WARPS * EACH);
        SHARED(u32, row, WARPS * EACH);
        const Batch &a = sides.anchors, &b = sides.others;
        const u32 positives = BATCH_THREADS * EACH / anchors, rows = anchors + positives;
        const u32 group = threadIdx.x / positives * EACH, mine = threadIdx.x % positives;
        const bool in_fours = a.dim % 4 == 0;  // then every row starts at a multiple of 16 bytes
        // Starts to bring columns `from` .. of the rows of a tile.
        const auto bring = [&](u32 turn, u32 tile, u32 from) {
            const u32 width = in_fours ? 4 : 1, each = STEP / width;
            for (u32 k = threadIdx.x; k < rows * each; k += BATCH_THREADS) {
                const u32 r = k / each, column = from + k % each * width;
                const bool anchor = r < anchors;
                const u32 at = anchor ? base + r : tile + r - anchors;
                const bool there = column < a.dim && (anchor ? r < count : at < end);
                const float* y = there ? (anchor ? a.y : b.y) + i64(at) * a.dim + column : a.y;
                float* to = shared + (turn * ROWS + r) * PITCH + k % each * width;
                if (in_fours) copy_async16(to, y, there);
                else *to = there ? *y : 0.f;
            }
            copy_async_commit();
        };
        float best[EACH];
        u32 best_row[EACH];
#pragma unroll
        for (u32 q = 0; q < EACH; ++q) {
            best[q] = 0.f;
            best_row[q] = NONE;
        }
        const auto merge = [&](u32 q, float d, u32 p) {
            if (p != NONE && (best_row[q] == NONE || d > best[q] || (d == best[q] && p < best_row[q]))) {
                best[q] = d;
                best_row[q] = p;
            }
        };
        u32 turn = 0;
        __syncthreads();  // nobody reads what a call before has brought
        bring(turn, first, 0);
        for (u32 tile = first; tile < end; tile += positives) {
            double total[EACH] = {};
            float sum[EACH] = {};
            for (u32 from = 0; from < a.dim; from += STEP) {
                copy_async_wait<0>();
                __syncthreads();  // these columns are here, and all threads are done with those whose place is filled next
                const bool next = from + STEP < a.dim;
                if (next || tile + positives < end) bring(turn ^ 1, next ? tile : tile + positives, next ? from + STEP : 0);
                // Sums of 4, of 16 and of PROMOTED columns, and these in f64: few roundings one on the other.
                float of_step[EACH] = {};
#pragma unroll 1
                for (u32 c = 0; c < STEP; c += 4) {
                    const auto of = [&](u32 r) { return load<float, 4>(shared + (turn * ROWS + r) * PITCH + c); };
                    const Pack<float, 4> y = of(anchors + mine);
#pragma unroll
                    for (u32 q = 0; q < EACH; ++q) {
                        const Pack<float, 4> x = of(group + q);
                        float of_four = 0.f;
#pragma unroll
                        for (int v = 0; v < 4; ++v) {
                            const float e = x.v[v] - y.v[v];
                            of_four += kind == COSINE ? x.v[v] * y.v[v] : e * e;
                        }
                        of_step[q] += of_four;
                    }
                }
                const bool promotes = (from + STEP) % PROMOTED == 0;
#pragma unroll
                for (u32 q = 0; q < EACH; ++q) {
                    sum[q] += of_step[q];
                    if (!promotes) continue;
                    total[q] += double(sum[q]);
                    sum[q] = 0.f;
                }
                turn ^= 1;
            }
            const u32 p = tile + mine;
#pragma unroll
            for (u32 q = 0; q < EACH; ++q) {
                const float d = float(total[q] + double(sum[q]));
                if (p < end && group + q < count && p != sides.own_of(base + group + q)) merge(q, kind == COSINE ? 1.f - d : d, p);
            }
        }
        // The positives of an anchor are in all lanes of its group's warps.
#pragma unroll
        for (u32 q = 0; q < EACH; ++q) {
#pragma unroll
            for (int offset = 16; offset > 0; offset /= 2) {
                const float d = __shfl_xor_sync(0xffffffff, best[q], offset);
                merge(q, d, __shfl_xor_sync(0xffffffff, best_row[q], offset));
            }
            if (threadIdx.x % 32 == 0) {
                distance[threadIdx.x / 32 * EACH + q] = best[q];
                row[threadIdx.x / 32 * EACH + q] = best_row[q];
            }
        }
        __syncthreads();  // the warps' farthest are there
        if (threadIdx.x < count) {
            const u32 warps = positives / 32, from = threadIdx.x / EACH * warps, q = threadIdx.x % EACH;
            best_row[0] = NONE;
            for (u32 w = from; w < from + warps; ++w) merge(0, distance[w * EACH + q], row[w * EACH + q]);
            found[threadIdx.x] = best_row[0];
        }
        __syncthreads();  // the farthest are there, and read by all
    }
};
