// The second product of losses over pairs: sum_j w_ij (y_i - y_j) for a tile of weights in shared memory, by a block of
// TILE_THREADS threads for its TILE rows. It takes differences instead of (sum_j w_ij) y_i less a product, so that rows
// near each other lose nothing.
#pragma once
#include "tile.cuh"

// Numbers from row to row of the weights: the two threads of each of a warp's 16 rows are in 32 different banks.
constexpr int PITCH = TILE + 2;
// Columns of the embeddings that `push` takes at a time.
constexpr int CHUNK = TERCET_PUSH_CHUNK, CHUNK_PITCH = CHUNK + 4;

using WeightTile = float[TILE][PITCH];
using RowChunks = float[2][TILE][CHUNK_PITCH];  // of the embeddings of the tile's rows, and of its columns
static_assert(CHUNK % 4 == 0 && CHUNK_PITCH % 4 == 0, "pieces of 16 bytes");

// The shared memory of a block that makes a tile's distances, and then weights of them to push by. P: the precision.
template <class P> struct PushBuffers {
    union {
        TileBuffers<P> buffers;
        RowChunks y;
    };
    WeightTile d;  // the distances, and then the weights
};

// Adds sum_j w_ij (y_i - y_j) to `pushed`, without `difference` -sum_j w_ij y_j. y_i are the TILE rows at `rows`, y_j
// those at `others`; these three are [TILE, dim]. All threads of the block must call, behind a barrier after the
// weights are written; the shared memory is free again when it returns.
DEVICE void push(const WeightTile& weights, RowChunks& y, const float* rows, const float* others, u32 dim, bool difference, float* pushed) {
    constexpr int ROWS = 8, COLUMNS = 4;
    static_assert(TILE / ROWS * (CHUNK / COLUMNS) == TILE_THREADS && COLUMNS == 4, "a thread has ROWS x COLUMNS sums");
    const bool in_fours = dim % 4 == 0;  // then every row starts at a multiple of 16 bytes
    const int r0 = threadIdx.x / (CHUNK / COLUMNS) * ROWS, c0 = threadIdx.x % (CHUNK / COLUMNS) * COLUMNS;
    for (u32 chunk = 0; chunk < dim; chunk += CHUNK) {
        if (in_fours) {
            // All copies are in flight at a time: the first instruction that waits is copy_async_wait.
            for (int k = threadIdx.x; k < 2 * TILE * CHUNK / 4; k += TILE_THREADS) {
                const int side = k / (TILE * CHUNK / 4), r = k / (CHUNK / 4) % TILE, column = k % (CHUNK / 4) * 4;
                const bool there = chunk + column < dim;
                const float* from = (side ? others : rows) + i64(r) * dim + (there ? chunk + column : 0);
                copy_async16(&y[side][r][column], from, there);
            }
            copy_async_commit();
            copy_async_wait<0>();
        } else {
            for (int k = threadIdx.x; k < 2 * TILE * CHUNK; k += TILE_THREADS) {
                const int r = k / CHUNK % TILE, column = k % CHUNK;
                const float* from = (k < TILE * CHUNK ? rows : others) + i64(r) * dim + chunk;
                y[k / (TILE * CHUNK)][r][column] = chunk + column < dim ? from[column] : 0.f;
            }
        }
        __syncthreads();  // the chunk is there
        float sums[ROWS][COLUMNS], mine[ROWS][COLUMNS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int k = 0; k < COLUMNS; ++k) {
                sums[r][k] = 0.f;
                mine[r][k] = difference ? y[0][r0 + r][c0 + k] : 0.f;
            }
#pragma unroll 4
        for (int j = 0; j < TILE; ++j) {
            const Pack<float, COLUMNS> other = load<float, COLUMNS>(&y[1][j][c0]);
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                const float weight = weights[r0 + r][j];
#pragma unroll
                for (int k = 0; k < COLUMNS; ++k) sums[r][k] += weight * (mine[r][k] - other.v[k]);
            }
        }
        float* to = pushed + i64(r0) * dim + chunk + c0;
        if (in_fours) {
            if (chunk + c0 < dim) {
                Pack<float, 4> before[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; ++r) before[r] = load<float, 4>(to + i64(r) * dim);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
#pragma unroll
                    for (int k = 0; k < COLUMNS; ++k) before[r].v[k] += sums[r][k];
                    store<float, 4>(to + i64(r) * dim, before[r]);
                }
            }
        } else {
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int k = 0; k < COLUMNS; ++k)
                    if (chunk + c0 + k < dim) to[i64(r) * dim + k] += sums[r][k];
        }
        __syncthreads();  // all threads are done with the chunk, after the last one also with the weights
    }
}
