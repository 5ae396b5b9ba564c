// Which pairs of two classes a sweep (sweep.cuh) takes, and their distances. A sweep loses digits of pairs that are near each
// other, and has no room for all there may be of a class: of each tile a warp takes its part, or leaves it to a kernel that
// computes differences.
#pragma once
#include "batch.cuh"
#include "sweep.cuh"

constexpr float MASKED = 3.402823466e38f;  // farther than any threshold

// What there is in a tile of rows. Written by integer maxima, into zeros. The same layout as `TileOf` in src/cuda/sweep.rs.
struct alignas(16) TileOf {
    u32 norm;   // bits of the largest squared norm
    u32 reach;  // bits of the largest threshold, or of 0
    u32 size;   // rows of the largest class that any of the rows is of
    u32 odd;    // whether a row is too long, or its scale too small beside the batch's largest
};
// The largest squared norm of an ordinary row, and the least squared distance that a root is taken of: no step of it over- or
// underflows.
constexpr float LARGEST_NORM = 0x1p98f, LEAST_SQUARE = 0x1p-98f;

// Adds what a warp knows of a row to its tile. One thread calls.
DEVICE void add_to_tile(TileOf* tiles, u32 row, float norm, float reach, u32 size, bool odd) {
    TileOf& tile = tiles[row / TILE];
    atomicMax(&tile.norm, __float_as_uint(norm));
    if (reach > 0.f) atomicMax(&tile.reach, __float_as_uint(reach));
    if (size > 0) atomicMax(&tile.size, size);
    if (odd) atomicMax(&tile.odd, 1u);
}

// What a sweep leaves to others: for each of its tiles a byte, with a bit for each warp. Shared memory has room for so many tiles.
constexpr u32 LEFT_TILES = TERCET_SWEEP_TILES;
struct Left {
    u32 words[LEFT_TILES / 4];

    DEVICE void clear(u32 threads) {
        for (u32 k = threadIdx.x; k < LEFT_TILES / 4; k += threads) words[k] = 0;
    }
    // The whole warp calls: it leaves its part of the block's tile number `index`.
    DEVICE void add(u32 index) {
        if (threadIdx.x % 32 == 0) atomicOr(&words[index / 4], 1u << (index % 4 * 8 + threadIdx.x / 32));
    }
    // Writes what was left of `tiles` tiles, or all of them, to the block's place. All threads call, behind a barrier.
    DEVICE void write(u8* to, u32 tiles, u32 threads, bool all) const {
        for (u32 k = threadIdx.x; k < (tiles + 3) / 4; k += threads) reinterpret_cast<u32*>(to)[k] = all ? 0xffffffff : words[k];
    }
};
// Whether the byte of a tile says that a pair was left. across: warps that share rows.
DEVICE bool is_left(u32 byte, u32 across, u32 row, u32 column) { return byte >> (row / 16 * across + column / (TILE / across)) & 1; }

// What a sweep of a loss without thresholds has in shared memory besides its own. ACROSS: warps that share rows.
template <int ACROSS> struct TermsShared {
    // Of the columns, norm and factor. Every thread copies four bytes: where there are more threads, they come twice.
    float terms[ACROSS][TILE][2];
    Left left;

    // Starts the copies of a tile of columns.
    DEVICE void bring(const Batch& columns, u32 tile) {
        constexpr u32 NUMBERS = TILE * 2;
        copy_async_few<4>(shared_address(&terms[0][0][0] + threadIdx.x), columns.terms + u64(tile) * NUMBERS + threadIdx.x % NUMBERS);
    }
};
constexpr u32 terms_bytes[2] = {TERCET_SWEEP_TERMS_SHARED};
// The shared memory of a block of such a sweep. P: the precision. S: the shape.
template <class P, class S> struct TermsSweepShared {
    typename Sweep<P, S>::Shared tiles;
    TermsShared<S::across> loss;
    static_assert(S::threads == S::across * TILE * 2, "a number a thread");
    static_assert(sizeof(tiles) == S::shared_bytes[P::planes - 1] && sizeof(loss) == terms_bytes[S::across - 1], "src/constants.rs");
};

// Splits weights of two columns, times what makes them f16, into hi and lo. j, r: of a fragment of products the number, and the row.
template <class S> DEVICE void split_weights(Weights<S, 2>& w, int j, int r, const float (&scaled)[2]) {
    const u32 high = pack_f16(scaled[0], scaled[1]);
    w[0][j / 2][j % 2 * 2 + r] = high;
    w[1][j / 2][j % 2 * 2 + r] = pack_f16(scaled[0] - first_f16(high), scaled[1] - second_f16(high));
}

// What a sweep, and the kernel after it, sum up for the rows of one side. Blocks are numbered [row tiles, splits]. The same layout as
// `Swept` in src/cuda/sweep.rs.
struct Swept {
    u8* left;             // [blocks, left_stride]: what the sweep has left of each block's tiles
    u32* left_any;        // [blocks]: whether there is anything
    float* pushed;        // [parts, padded, width]: sum_j w_ij z_j, z as the planes have it
    float* weights;       // [halves, padded]: sum_j w_ij
    float* left_pushed;   // [splits, padded, dim]: sum_j w_ij (y_i - y_j) of the pairs that the sweep leaves
    float* left_weights;  // [splits, padded]: sum_j w_ij of these
    float* scratch;       // [rows, dim]: gradients before the normalisation
    u32 left_stride, splits;
    u32 parts;            // of the sums of pushes: `splits` times those of a block
    u32 halves;           // of all else that a sweep sums up for a row: `splits` times the warps that share rows
    u32 with_grad;        // whether rows are pushed
    u32 which;            // the rows: the anchors or, 1, the reference set

    // How many tiles the block takes of so many.
    DEVICE u32 taken(u32 tiles) const { return (tiles - blockIdx.x % splits + splits - 1) / splits; }
    DEVICE u8* left_of_block() const { return left + u64(blockIdx.x) * left_stride; }
    // Whether the block has left anything of so many tiles; all threads get it, and it is written down. any: in shared memory.
    DEVICE bool has_left(u32 tiles, u32& any) const {
        const u8* const bytes = left_of_block();
        if (threadIdx.x == 0) any = 0;
        __syncthreads();  // `any` is there
        for (u32 k = threadIdx.x; k < tiles; k += TILE_THREADS)
            if (bytes[k]) atomicOr(&any, 1u);
        __syncthreads();  // all threads have looked
        if (threadIdx.x == 0) left_any[blockIdx.x] = any;
        return any;
    }
    // Whether there is a number for a row in part `part` of what is summed up: first come `halves` of the sweep, then `splits` of the
    // kernel after it.
    DEVICE bool has_part(u32 row, u32 part) const { return part < halves || left_any[row / TILE * splits + part - halves]; }
    // What the block takes of rows a and columns b. ordinary: whether a sweep may take its rows.
    template <class S> DEVICE Course course(const Batch& a, const Batch& b, bool ordinary) const {
        const u32 split = blockIdx.x % splits;
        Course course = {a.operand(), b.operand(), blockIdx.x / splits, split, splits, ordinary ? b.padded / TILE : split, nullptr, u64(a.padded) * a.operand().width()};
        if (with_grad) course.sums = pushed + u64(split) * S::parts * course.part_stride + u64(course.row_tile) * TILE * course.width();
        return course;
    }
};

// What a row is pushed by, sum_j w_ij (y_i - y_j), or for cosine -sum_j w_ij y_j but for a part along y_i that normalisation takes
// out: by column, for a warp. P: the precision.
template <class P> struct Pushes {
    const Swept& sweep;
    const Batch& b;
    u32 row;
    float unit, weight, flat;

    // unit: what the sweep's sums of weights times rows are in. The whole warp calls.
    DEVICE Pushes(const Swept& sweep, const Batch& b, u32 row, float unit = 1.f) : sweep(sweep), b(b), row(row), unit(unit) {
        const u32 lane = threadIdx.x % 32;
        float swept = 0, left = 0;
        for (u32 half = lane; half < sweep.halves; half += 32) swept += sweep.weights[u64(half) * b.padded + row];
        for (u32 split = lane; split < sweep.splits; split += 32)
            if (sweep.has_part(row, sweep.halves + split)) left += sweep.left_weights[u64(split) * b.padded + row];
        weight = group_sum<32>(swept);
        // A row that is too short for a unit vector is not normalised: the part along it must be taken out here.
        flat = b.is_flat(row) ? weight + group_sum<32>(left) : 0.f;
    }
    DEVICE float operator()(u32 column) const {
        const u32 width = b.operand().width();
        float sum = 0;
        for (u32 part = 0; part < sweep.parts; ++part) sum -= sweep.pushed[(u64(part) * b.padded + row) * width + column];
        sum = sum * unit + weight * decoded<P>(b, row, column, b.operand().panels());
        for (u32 split = 0; split < sweep.splits; ++split)
            if (sweep.has_part(row, sweep.halves + split)) sum += sweep.left_pushed[(u64(split) * b.padded + row) * b.dim + column];
        return sum - flat * b.y[i64(row) * b.dim + column];
    }
};

// Squared distances to the rows of a tile, or with ROOT distances, of a warp's two rows a thread.
template <class S, bool ROOT> struct Distances {
    // What is rarely looked at is not kept in registers.
    const Sides& sides;
    const Course& course;
    const u32 which;        // the rows: the anchors or, 1, the others
    float norm[2], scale[2];
    u32 low, high;          // from the first row of the block's rows' classes, among the columns, to the last

    DEVICE Distances(const Sides& sides, u32 which, const Course& course) : sides(sides), course(course), which(which) {
        const Batch& of_rows = which ? sides.others : sides.anchors;
        const u32 base = course.row_tile * TILE, last = of_rows.rows - 1;
        low = class_first(base);
        high = class_end(base + TILE - 1 < last ? base + TILE - 1 : last);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const u32 row = base + S::row() + r * 8;
            norm[r] = row <= last ? of_rows.norm[row] : 0.f;
            scale[r] = row <= last ? of_rows.scale[row] : 0.f;
        }
    }
    DEVICE u32 class_first(u32 row) const { return (which ? sides.other_first : sides.first)[row]; }
    DEVICE u32 class_end(u32 row) const { return (which ? sides.other_end : sides.end)[row]; }
    // Rows of the columns' batch.
    DEVICE u32 columns() const { return which ? sides.anchors.rows : sides.others.rows; }
    // d: products, and then distances; MASKED: not a pair of two classes. least, total: of each row's distances, without these.
    // False if a pair is near, or the tile is not ordinary: then nothing holds, and the warp leaves its part of the block's tile
    // number `index`. The whole warp calls.
    DEVICE bool make(u32 tile, const TileOf& of, bool ordinary, const float (&terms)[TILE][2], Products<S>& d, float (&least)[2], float (&total)[2], Left& left,
                     u32 index) const {
        const u32 base = tile * TILE;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            least[r] = MASKED;
            total[r] = 0.f;
        }
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> t = load<float, 4>(terms[S::column(j)]);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                d[j][e] = fmaf(d[j][e] * t.v[e % 2 * 2 + 1], scale[e / 2], t.v[e % 2 * 2] + norm[e / 2]);
            }
#pragma unroll
            for (int r = 0; r < 2; ++r) least[r] = least_of(least[r], d[j][r * 2], d[j][r * 2 + 1]);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                if (ROOT) d[j][e] = root(d[j][e]);
                total[e / 2] += d[j][e];
            }
        }
        // Below 1/64 of both squared norms a distance has cancelled.
        const float most = ordinary ? __uint_as_float(of.norm) : __uint_as_float(0x7f800000);
        bool special = base < high && base + TILE > low;
        special = special || base + TILE > columns();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            special = special || least[r] <= fmaf(norm[r], 1.f / 64, most * (1.f / 64)) || (ROOT && least[r] < LEAST_SQUARE);
            if (ROOT) least[r] = root(least[r]);
        }
        // All that is rare happens behind this one vote.
        bool holds = true;
        if (__any_sync(0xffffffff, special)) {
            holds = mask(base, ordinary, terms, d, least, total);
            if (!holds) left.add(index);
        }
        return holds;
    }
    // The square root of a number from LEAST_SQUARE to LARGEST_NORM, correctly rounded: a corrected approximation.
    static DEVICE float root(float x) {
        const float reciprocal = reciprocal_root(x), y = x * reciprocal;
        return fmaf(fmaf(-y, y, x), .5f * reciprocal, y);
    }
    // As `make`, where pairs of one class, columns beyond the batch, or near pairs are in the tile.
    DEVICE bool mask(u32 base, bool ordinary, const float (&terms)[TILE][2], Products<S>& d, float (&least)[2], float (&total)[2]) const {
        bool near = !ordinary;
        const u32 rows = columns();
        u32 first[2], end[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const u32 row = course.row_tile * TILE + S::row() + r * 8;
            const bool there = row < (which ? sides.others.rows : sides.anchors.rows);
            first[r] = there ? class_first(row) : 0;
            end[r] = there ? class_end(row) : rows;  // no pair
        }
        least[0] = least[1] = MASKED;
        total[0] = total[1] = 0.f;
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> t = load<float, 4>(terms[S::column(j)]);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const u32 column = base + S::column(j) + e % 2;
                const bool pair = column < rows && (column < first[e / 2] || column >= end[e / 2]);
                const float squared = ROOT ? d[j][e] * d[j][e] : d[j][e], both = t.v[e % 2 * 2] + norm[e / 2];
                // A row that is not finite has the norm NaN, and no near pairs: the loss is NaN anyhow.
                near = near || (pair && both == both && (!(squared > both * (1.f / 64)) || (ROOT && squared < LEAST_SQUARE)));
                d[j][e] = pair ? d[j][e] : MASKED;
                least[e / 2] = fminf(least[e / 2], d[j][e]);
                total[e / 2] += pair ? d[j][e] : 0.f;
            }
        }
        return !__any_sync(0xffffffff, near);
    }
};

// ---- what a sweep leaves ----

// Squared distances of the pairs of a tile that a sweep has left, for a block of TILE_THREADS threads. base: the first row and the
// first column. byte: what was left. class_first, class_end: of the rows, among the columns.
// keep(row, column, squared): called for each such pair. mask(row, column): called for all others. lost(): for a distance that is
// not a number. All threads must call; what they keep in shared memory is there after a barrier.
template <class P, class K, class M, class F>
DEVICE void distances_left(TileBuffers<P>& buffers, const Batch& a, const Batch& b, const u32* class_first, const u32* class_end, const u32 (&base)[2], u32 byte,
                           u32 across, K keep, M mask, F lost) {
    GramTile<P> tile;
    const Operand side[2] = {a.operand(), b.operand()};
    tile.run(buffers, side, base);
    u32 first[GramTile<P>::ROWS], end[GramTile<P>::ROWS];
#pragma unroll
    for (int slot = 0; slot < GramTile<P>::ROWS; ++slot) {
        const u32 row = base[0] + GramTile<P>::row_of(slot);
        first[slot] = row < a.rows ? class_first[row] : 0;
        end[slot] = row < a.rows ? class_end[row] : 0xffffffff;
    }
    tile.each_by_warps(
        [&](int slot, int r, int c, float product) {
            const u32 i = base[0] + r, j = base[1] + c;
            if (j >= b.rows || (j >= first[slot] && j < end[slot]) || !is_left(byte, across, r, c)) {
                mask(r, c);
                return false;
            }
            bool near;
            const float d = squared_distance(a, i, b, j, product, near);
            near = near || !is_finite(d);
            if (!near) keep(r, c, d);
            return near;
        },
        [&](int r, int c, bool mine) {
            const float d = near_squared_distance_by_warp(a, base[0] + r, b, base[1] + c);
            if (!mine) return;
            if (!is_finite(d)) lost();
            keep(r, c, d);
        });
}

// ---- kernels ----

// The sweeps of a loss: for each precision P and each shape S, with ROOT where the distance is Euclidean, the loss's
// `sweep<P, S, ROOT>`.
#define SWEEPS(stem)                \
    SWEEPS_OF(stem, highest, Split) \
    SWEEPS_OF(stem, half, Half)
#define SWEEPS_OF(stem, precision, P)                   \
    SWEEP(stem, precision, P, wide, SweepWide)          \
    SWEEP(stem, precision, P, wide_long, SweepWideLong) \
    SWEEP(stem, precision, P, narrow, SweepNarrow)      \
    SWEEP(stem, precision, P, narrow_long, SweepNarrowLong)
#define SWEEP(stem, precision, P, shape, S)                                                                               \
    IF_TAKEN(TERCET_SWEEP_##stem##_##precision##_##shape,                                                                 \
        KERNEL_OF(S::blocks, stem##_sweep_##precision##_##shape, S::threads, const Args args) { sweep<P, S, false>(args); } \
        KERNEL_OF(S::blocks, stem##_sweep_root_##precision##_##shape, S::threads, const Args args) { sweep<P, S, true>(args); })
