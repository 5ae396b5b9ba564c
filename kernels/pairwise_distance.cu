// pairwise_distance:  d_ij = d(x_i, y_j), the matrix.
//
// tiles:  a block takes a tile of the Gram matrix; pairs too near for it are computed from the difference. With an
//         upstream gradient G it writes the weights G_ij / d_ij of the Euclidean gradient instead, 0 at d = 0.
// push:   sum_j w_ij (x_i - y_j) for the rows of one side; a block owns its rows and takes every `splits`-th tile of columns.
// finish: the constant factor, normalisation, and the caller's type.
#include "batch.cuh"
#include "push.cuh"

// The same layout as `Args` in src/pairwise_distance/cuda.rs.
struct Args {
    Batch side[2];
    float* out;             // [side[0].rows, side[1].rows]: distances, or weights
    const float* upstream;  // the same shape; null: distances are wanted
    const float* weight;    // G, or the weights of `tiles`
    float* pushed;          // [splits, padded, dim] of the side that is pushed
    void* grad;             // [rows, dim] T of that side
    u32 kind, which, splits;
    u32 padding;            // to the end of 8 bytes: the host's struct has no gaps
};

// A block computes a tile of distances, or of weights. P: a precision.
template <class P> DEVICE void tiles(const Args& args) {
    SHARED_DYNAMIC(TileBuffers<P>, buffers);
    const Batch &a = args.side[0], &b = args.side[1];
    const u32 columns = b.padded / TILE;
    const u32 base[2] = {blockIdx.x / columns * TILE, blockIdx.x % columns * TILE};
    const Operand side[2] = {a.operand(), b.operand()};
    GramTile<P> tile;
    tile.run(buffers, side, base);
    const auto write = [&](u32 i, u32 j, float squared) {
        const u64 at = u64(i) * b.rows + j;
        const float d = args.kind == SQUARED ? squared : args.kind == EUCLIDEAN ? sqrtf(squared) : squared * .5f;
        args.out[at] = !args.upstream ? d : d > 0.f ? args.upstream[at] / d : 0.f;
    };
    tile.each(
        [&](int, int r, int c, float product) {
            const u32 i = base[0] + r, j = base[1] + c;
            if (i >= a.rows || j >= b.rows) return false;
            bool near;
            const float d = squared_distance(a, i, b, j, product, near);
            near = near || !is_finite(d);
            if (!near) write(i, j, d);
            return near;
        },
        [&](int, int r, int c) {
            const u32 i = base[0] + r, j = base[1] + c;
            // A row with NaN or infinity has a norm of NaN.
            const float d = near_squared_distance(a, i, b, j);
            write(i, j, a.norm[i] + b.norm[j] == a.norm[i] + b.norm[j] ? d : nan_value<float>());
        });
}

struct PushShared {
    WeightTile weights;
    RowChunks y;
};
static_assert(sizeof(PushShared) == TERCET_PUSH_SHARED, "src/constants.rs");

KERNEL(pairwise_distance_push, TILE_THREADS, const Args args) {
    SHARED_DYNAMIC(PushShared, s);
    const Batch &mine = args.side[args.which], &other = args.side[1 - args.which];
    const u32 base = blockIdx.x / args.splits * TILE, split = blockIdx.x % args.splits;
    float* pushed = args.pushed + (i64(split) * mine.padded + base) * mine.dim;
    for (u32 k = threadIdx.x; k < TILE * mine.dim; k += TILE_THREADS) pushed[k] = 0.f;
    for (u32 tile = split; tile < other.padded / TILE; tile += args.splits) {
        const u32 columns = tile * TILE;
        for (u32 k = threadIdx.x; k < TILE * TILE; k += TILE_THREADS) {
            // Neighbouring threads read neighbouring weights, whichever side is pushed.
            const u32 slow = k / TILE, fast = k % TILE;
            const u32 r = args.which ? fast : slow, c = args.which ? slow : fast;
            const u32 i = base + r, j = columns + c;
            const u64 at = args.which ? u64(j) * mine.rows + i : u64(i) * other.rows + j;
            s.weights[r][c] = i < mine.rows && j < other.rows ? args.weight[at] : 0.f;
        }
        __syncthreads();  // the weights are there
        push(s.weights, s.y, mine.y + i64(base) * mine.dim, other.y + i64(columns) * mine.dim, mine.dim, args.kind != COSINE, pushed);
    }
}

// A warp writes the gradient of a row. T: the type of the caller's rows.
template <class T> DEVICE void finish(const Args& args) {
    const Batch& b = args.side[args.which];
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32;
    if (row >= b.rows) return;
    const float slope = args.kind == SQUARED ? 2.f : 1.f, inverse = b.inverse[row];
    const float* y = b.y + i64(row) * b.dim;
    float* g = args.pushed + i64(row) * b.dim;
    float along = 0;
    for (u32 c = lane; c < b.dim; c += 32) {
        float sum = 0;
        for (u32 split = 0; split < args.splits; ++split) sum += g[i64(split) * b.padded * b.dim + c];
        g[c] = sum * slope;
        along += g[c] * y[c];
    }
    along = group_sum<32>(along);
    const bool bad = b.norm[row] != b.norm[row];
    for (u32 c = lane; c < b.dim; c += 32) {
        const float through = b.normalize ? (inverse > 0.f ? g[c] - along * y[c] : g[c]) * fabsf(inverse) : g[c];
        T result;
        narrow(result, bad ? nan_value<float>() : through);
        static_cast<T*>(args.grad)[i64(row) * b.dim + c] = result;
    }
}

KERNEL(pairwise_distance_tiles_highest, TILE_THREADS, const Args args) { tiles<Split>(args); }
KERNEL(pairwise_distance_tiles_half, TILE_THREADS, const Args args) { tiles<Half>(args); }
KERNEL(pairwise_distance_tiles_plain, TILE_THREADS, const Args args) { tiles<Plain>(args); }
KERNEL(pairwise_distance_finish_f32, BATCH_THREADS, const Args args) { finish<float>(args); }
KERNEL(pairwise_distance_finish_f16, BATCH_THREADS, const Args args) { finish<f16>(args); }
KERNEL(pairwise_distance_finish_bf16, BATCH_THREADS, const Args args) { finish<bf16>(args); }
