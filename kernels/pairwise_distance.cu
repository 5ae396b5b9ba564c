// pairwise_distance:  d_ij = d(x_i, y_j), the matrix.
//
// tiles:    a block takes a tile of the Gram matrix; pairs too near for it are computed from the difference.
//
// The gradient, from an upstream G:  sum_j w_ij (x_i - y_j)  with w = 2 G, G / d (0 at d = 0) or, for cosine, G. Of one side,
// and with G turned of the other:
// units:    by how much a row's weights are multiplied, to be f16 in two planes; and what a sweep needs to know of each row.
// sweep:    weights and their products with rows, in one pass (sweep.cuh). Also where the weight is not of the distance: that tells
//           which pairs are near each other, and a sweep would lose digits of.
// left:     the same for these, by differences.
// backward: what a row was pushed by, normalisation, in the caller's type.
//
// Products on CUDA cores, which others are checked against, take other ways: `tiles` writes the weights of the Euclidean gradient,
// push:     adds differences, for the rows of one side; a block owns its rows and takes every `splits`-th tile of columns.
// finish:   is their `backward`.
#include "ordinary.cuh"
#include "push.cuh"

// The same layout as `Args` in src/pairwise_distance/cuda.rs.
struct Args {
    Sides sides;            // x and y: no row is of any class
    Swept sweep;            // of one side's rows. Of `push`, `pushed` is [splits, padded, dim]
    TileOf* tiles[2];       // of x, and of y
    u32* largest[2];        // [padded] bits of the largest number that is to be f16 among the weights of each row, of x and of y
    float* out;             // [rows of x, rows of y]: distances, or weights
    const float* upstream;  // the same shape; null: distances are wanted
    const float* weight;    // of `push`: G, or the weights of `tiles`
    void* grad;             // [rows, dim] of type T, of the sweep's rows
    u32 kind;               // a Distance
    u32 padding;            // to the end of 8 bytes: the host's struct has no gaps

    // The rows of one side, and those of the other.
    DEVICE const Batch& rows() const { return sweep.which ? sides.others : sides.anchors; }
    DEVICE const Batch& columns() const { return sweep.which ? sides.anchors : sides.others; }
    // Where the number for a row and a column of the sweep lies in a matrix of x and y.
    DEVICE u64 place(u32 row, u32 column) const {
        return sweep.which ? u64(column) * sides.others.rows + row : u64(row) * sides.others.rows + column;
    }
};

// A block computes a tile of distances, or of weights. P: a precision.
template <class P> DEVICE void tiles(const Args& args) {
    SHARED_DYNAMIC(TileBuffers<P>, buffers);
    const Batch &a = args.sides.anchors, &b = args.sides.others;
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

// ---- the gradient by a sweep ----

// Rows of G that a block of `units` looks at, a column a thread.
constexpr u32 UNIT_ROWS = TERCET_UNIT_ROWS;

// Weights that become f16 are |G_ij| times the column's scale; or for roots at most 8 |G_ij|, since a pair that is not near is at
// least 1/8 of its column's scale apart. This finds the largest of each row, of both sides.
KERNEL(pairwise_distance_units, BATCH_THREADS, const Args args) {
    const Batch &x = args.sides.anchors, &y = args.sides.others;
    const bool root = args.kind == EUCLIDEAN;
    const u32 column_blocks = (y.rows + BATCH_THREADS - 1) / BATCH_THREADS, column_block = blockIdx.x % column_blocks;
    const u32 begin = blockIdx.x / column_blocks * UNIT_ROWS, end = begin + UNIT_ROWS < x.rows ? begin + UNIT_ROWS : x.rows;
    const u32 j = column_block * BATCH_THREADS + threadIdx.x;
    const bool there = j < y.rows;
    // A row of zeros adds nothing, whatever its weights.
    const auto factor = [&](const Batch& b, u32 row) { return root ? 8.f : b.norm[row] == 0.f ? 0.f : b.scale[row]; };
    const float of_y = there ? factor(y, j) : 0.f;
    // One block's atomic a row, and not one of each warp.
    SHARED(u32, of_rows, UNIT_ROWS);
    if (threadIdx.x < UNIT_ROWS) of_rows[threadIdx.x] = 0;
    __syncthreads();  // the zeros are there
    u32 of_column = 0;
#pragma unroll 8
    for (u32 i = begin; i < end; ++i) {
        const float g = there ? fabsf(args.upstream[u64(i) * y.rows + j]) : 0.f;
        const u32 of_row = __reduce_max_sync(0xffffffff, __float_as_uint(g * of_y));
        if (threadIdx.x % 32 == 0) atomicMax(&of_rows[i - begin], of_row);
        const u32 bits = __float_as_uint(g * factor(x, i));
        of_column = of_column > bits ? of_column : bits;
    }
    if (there && of_column > 0) atomicMax(&args.largest[1][j], of_column);
    __syncthreads();  // all warps have looked at the rows
    if (begin + threadIdx.x < end && of_rows[threadIdx.x] > 0) atomicMax(&args.largest[0][begin + threadIdx.x], of_rows[threadIdx.x]);
    const auto describe = [&](u32 side, const Batch& b, u32 row) { add_to_tile(args.tiles[side], row, b.norm[row], 0.f, 0, b.norm[row] > LARGEST_NORM); };
    if (begin == 0 && there) describe(1, y, j);
    if (column_block == 0 && begin + threadIdx.x < end) describe(0, x, begin + threadIdx.x);
}
static_assert(UNIT_ROWS <= BATCH_THREADS, "a thread a row");

// By which power of two a row's weights are multiplied so that the largest is 2^13 .. 2^14 and, in two planes, exact to 2^-25.
// False: it is too large for f32. bits: of the largest.
DEVICE bool enlarging(u32 bits, float& enlarge) {
    const u32 exponent = bits >> 23, least = 20;  // of tiny numbers the power would not be finite
    enlarge = __uint_as_float((127 + 13 + 127 - (exponent < least ? least : exponent)) << 23);
    return exponent < 127 + 100;  // so that sums of weights are finite too
}

// pairwise_distance as a loss of a sweep. ROOT: the distance is Euclidean.
template <class S, bool ROOT> struct SweptMatrix {
    static constexpr int planes = 2;

    const Args& args;
    const Course& course;
    TermsShared<S::across>& shared;
    TileOf of;                         // the tile that is taken
    Distances<S, ROOT> distances;
    bool ordinary;                     // whether the warp's weights can be f16
    u32 index;                         // tiles taken so far
    float enlarge[2], total[2];        // of the thread's two rows, by how much weights are multiplied; the sums of their weights
    float g[S::COLUMN_FRAGMENTS][4];   // G of the warp's part of the tile

    DEVICE SweptMatrix(const Args& args, const Course& course, TermsShared<S::across>& shared)
        : args(args), course(course), shared(shared), distances(args.sides, args.sweep.which, course), index(0) {
        bool fits = true;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const u32 row = course.row_tile * TILE + S::row() + r * 8;
            fits = enlarging(row < args.rows().rows ? args.largest[args.sweep.which][row] : 0, enlarge[r]) && fits;
            total[r] = 0.f;
        }
        ordinary = __all_sync(0xffffffff, fits);
        shared.left.clear(S::threads);
    }
    // Registers have room for half of G beside the products.
    DEVICE void look(u32 tile) {
        of = args.tiles[1 - args.sweep.which][tile];
        read<0>(tile);
    }
    // Reads G of the warp's part of a tile, for row number R of each thread's two.
    template <int R> DEVICE void read(u32 tile) {
        const u32 rows = args.rows().rows, columns = args.columns().rows, first = tile * TILE + S::column(0);
        // Columns beyond the last have no G: that is rare, and so behind a vote.
        const u32 end = columns > first ? columns - first : 0;
        const bool cut = __any_sync(0xffffffff, (tile + 1) * TILE > columns);
        const u32 row = course.row_tile * TILE + S::row() + R * 8;
        const float* const from = args.upstream + args.place(row < rows ? row : rows - 1, first);
        if (cut) read<true>(R, from, end);
        else read<false>(R, from, end);
    }
    // Reads row number r from where the thread's first column is. CUT: columns from `end` on are not there.
    template <bool CUT> DEVICE void read(int r, const float* from, u32 end) {
        const u32 apart = args.sweep.which ? args.sides.others.rows : 1;
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e) g[j][r * 2 + e] = !CUT || u32(j * 8 + e) < end ? from[u64(j * 8 + e) * apart] : 0.f;
    }
    DEVICE void bring(u32 tile) { shared.bring(args.columns(), tile); }
    DEVICE bool weigh(u32 tile, Products<S>& d, Weights<S, 2>& w) {
        float least[2], sums[2];
        read<1>(tile);
        if (!distances.make(tile, of, ordinary && !of.odd, shared.terms[0], d, least, sums, shared.left, index++)) return false;
        float of_tile[2] = {0.f, 0.f};
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> t = load<float, 4>(shared.terms[0][S::column(j)]);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float scaled[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float weight = ROOT ? g[j][r * 2 + e] * reciprocal(d[j][r * 2 + e]) : g[j][r * 2 + e];
                    of_tile[r] += weight;
                    // A factor is -2 times the column's scale.
                    scaled[e] = weight * t.v[e * 2 + 1] * enlarge[r];
                }
                split_weights<S>(w, j, r, scaled);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) total[r] += of_tile[r];
        return true;
    }
    DEVICE float scale() const { return -.5f; }
    // Writes what was summed up for the rows. All threads of the block call, behind a barrier.
    DEVICE void end() {
        const u32 half = blockIdx.x % args.sweep.splits * S::across + S::warp_column() / S::columns;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float weight = group_sum<4>(total[r]);
            const u32 row = course.row_tile * TILE + S::row() + r * 8;
            if (threadIdx.x % 4 == 0 && row < args.rows().rows) args.sweep.weights[u64(half) * args.rows().padded + row] = weight;
        }
    }
};

// A block takes a row tile with every `splits`-th column tile. P: the precision. S: the shape. ROOT: the distance is Euclidean.
template <class P, class S, bool ROOT> DEVICE void sweep(const Args& args) {
    using Shared = TermsSweepShared<P, S>;
    SHARED_DYNAMIC(Shared, s);
    const bool ordinary = !args.tiles[args.sweep.which][blockIdx.x / args.sweep.splits].odd;
    const u32 taken = args.sweep.taken(args.columns().padded / TILE);  // not after the sweep, through which more would be kept for it
    const Course course = args.sweep.course<S>(args.rows(), args.columns(), ordinary);
    SweptMatrix<S, ROOT> loss(args, course, s.loss);
    Sweep<P, S>(s.tiles, course).run(loss);
    loss.end();
    s.loss.left.write(args.sweep.left_of_block(), taken, S::threads, !ordinary);
}

// What the sweep has left of a block's tiles. P: the precision.
template <class P> DEVICE void left(const Args& args) {
    SHARED_DYNAMIC(PushBuffers<P>, s);
    static_assert(has_size<P, PushBuffers<P>>(TERCET_SWEEP_LEFT_SHARED), "src/constants.rs");
    SHARED(u32, any, 1);
    const Batch &a = args.rows(), &b = args.columns();
    const Swept& sweep = args.sweep;
    const u32 splits = sweep.splits, split = blockIdx.x % splits, row_base = blockIdx.x / splits * TILE;
    const u32 taken = sweep.taken(b.padded / TILE);
    const u8* const bytes = sweep.left_of_block();
    if (!sweep.has_left(taken, any[0])) return;
    float weights = 0;  // of a row, of every OF_ROW-th column
    constexpr u32 OF_ROW = TILE_THREADS / TILE;
    const u32 row = row_base + threadIdx.x / OF_ROW;
    float* pushed = sweep.left_pushed + (i64(split) * a.padded + row_base) * a.dim;
    for (u32 k = threadIdx.x; k < TILE * a.dim; k += TILE_THREADS) pushed[k] = 0.f;
    for (u32 tile = 0; tile < taken; ++tile) {
        if (!bytes[tile]) continue;
        const u32 base[2] = {row_base, (split + tile * splits) * TILE};
        const auto keep = [&](int r, int c, float squared) {
            const float g = args.upstream[args.place(base[0] + r, base[1] + c)];
            s.d[r][c] = args.kind != EUCLIDEAN ? g : squared > 0.f ? g / sqrtf(squared) : 0.f;
        };
        const u32 *first = sweep.which ? args.sides.other_first : args.sides.first, *end = sweep.which ? args.sides.other_end : args.sides.end;
        distances_left<P>(s.buffers, a, b, first, end, base, bytes[tile], sweep.halves / splits, keep, [&](int r, int c) { s.d[r][c] = 0.f; }, [] {});
        __syncthreads();  // the weights are there
        for (u32 c = threadIdx.x % OF_ROW; c < TILE; c += OF_ROW) weights += s.d[threadIdx.x / OF_ROW][c];
        push(s.d, s.y, a.y + i64(base[0]) * a.dim, b.y + i64(base[1]) * b.dim, a.dim, true, pushed);
    }
    weights = group_sum<OF_ROW>(weights);
    if (row < a.rows && threadIdx.x % OF_ROW == 0) sweep.left_weights[u64(split) * a.padded + row] = weights;
}

// A warp writes the gradient of a row. T: the type of the caller's rows. P: the precision.
template <class T, class P> DEVICE void backward(const Args& args) {
    const Batch &rows = args.rows(), &columns = args.columns();
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32;
    if (row >= rows.rows) return;
    float enlarge;
    enlarging(args.largest[args.sweep.which][row], enlarge);
    const Pushes<P> pushes(args.sweep, rows, row, 1.f / enlarge);
    float* g = args.sweep.scratch + i64(row) * rows.dim;
    for (u32 c = lane; c < rows.dim; c += 32) g[c] = pushes(c);
    // A row that is not finite has distances that are no numbers, from all rows.
    const bool lost = columns.survey->any_bad() || rows.norm[row] != rows.norm[row];
    write_gradient<T>(rows, row, g, args.kind == SQUARED ? 2.f : 1.f, lost, args.grad);
}

// ---- the gradient by products on CUDA cores ----

struct PushShared {
    WeightTile weights;
    RowChunks y;
};
static_assert(sizeof(PushShared) == TERCET_PUSH_SHARED, "src/constants.rs");

KERNEL(pairwise_distance_push, TILE_THREADS, const Args args) {
    SHARED_DYNAMIC(PushShared, s);
    const Batch &mine = args.rows(), &other = args.columns();
    const u32 splits = args.sweep.splits, base = blockIdx.x / splits * TILE, split = blockIdx.x % splits;
    float* pushed = args.sweep.pushed + (i64(split) * mine.padded + base) * mine.dim;
    for (u32 k = threadIdx.x; k < TILE * mine.dim; k += TILE_THREADS) pushed[k] = 0.f;
    for (u32 tile = split; tile < other.padded / TILE; tile += splits) {
        const u32 columns = tile * TILE;
        for (u32 k = threadIdx.x; k < TILE * TILE; k += TILE_THREADS) {
            // Neighbouring threads read neighbouring weights, whichever side is pushed.
            const u32 slow = k / TILE, fast = k % TILE;
            const u32 r = args.sweep.which ? fast : slow, c = args.sweep.which ? slow : fast;
            const u32 i = base + r, j = columns + c;
            s.weights[r][c] = i < mine.rows && j < other.rows ? args.weight[args.place(i, j)] : 0.f;
        }
        __syncthreads();  // the weights are there
        push(s.weights, s.y, mine.y + i64(base) * mine.dim, other.y + i64(columns) * mine.dim, mine.dim, args.kind != COSINE, pushed);
    }
}

// A warp writes the gradient of a row. T: the type of the caller's rows.
template <class T> DEVICE void finish(const Args& args) {
    const Batch& b = args.rows();
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32;
    if (row >= b.rows) return;
    float* g = args.sweep.pushed + i64(row) * b.dim;
    for (u32 c = lane; c < b.dim; c += 32) {
        float sum = 0;
        for (u32 split = 0; split < args.sweep.splits; ++split) sum += g[i64(split) * b.padded * b.dim + c];
        g[c] = sum;
    }
    write_gradient<T>(b, row, g, args.kind == SQUARED ? 2.f : 1.f, b.norm[row] != b.norm[row], args.grad);
}

KERNEL(pairwise_distance_tiles_highest, TILE_THREADS, const Args args) { tiles<Split>(args); }
KERNEL(pairwise_distance_tiles_half, TILE_THREADS, const Args args) { tiles<Half>(args); }
KERNEL(pairwise_distance_tiles_plain, TILE_THREADS, const Args args) { tiles<Plain>(args); }
KERNEL(pairwise_distance_left_highest, TILE_THREADS, const Args args) { left<Split>(args); }
KERNEL(pairwise_distance_left_half, TILE_THREADS, const Args args) { left<Half>(args); }
SWEEPS(pairwise_distance)
// The kernels for rows of type T.
#define OF_TYPE(dtype, T)                                                                                              \
    KERNEL(pairwise_distance_finish_##dtype, BATCH_THREADS, const Args args) { finish<T>(args); }                      \
    KERNEL(pairwise_distance_backward_##dtype##_highest, BATCH_THREADS, const Args args) { backward<T, Split>(args); } \
    KERNEL(pairwise_distance_backward_##dtype##_half, BATCH_THREADS, const Args args) { backward<T, Half>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
