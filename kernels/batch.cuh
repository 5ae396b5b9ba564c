// A batch of embeddings as batch.cu prepares it for mined losses: rows in class order, so that each class is one
// contiguous block; normalised, if the loss does so; translated, in planes of bytes, for the tile engine.
#pragma once
#include "distance.cuh"
#include "reduce.cuh"
#include "tile.cuh"
#include "triangle.cuh"

#define BATCH_THREADS TERCET_BATCH_THREADS

constexpr u32 NONE = 0xffffffff;  // no row

// Kernels of a shape that are left out unless a device that runs this code takes the shape: `taken` is a macro that
// src/cuda/targets.rs makes 1 or 0.
#define IF_TAKEN(taken, ...) IF_TAKEN_(taken, __VA_ARGS__)
#define IF_TAKEN_(taken, ...) IF_TAKEN_##taken(__VA_ARGS__)
#define IF_TAKEN_0(...)
#define IF_TAKEN_1(...) __VA_ARGS__

// The distances of mined losses.
enum Distance : u32 { SQUARED = TERCET_SQUARED, EUCLIDEAN = TERCET_EUCLIDEAN, COSINE = TERCET_COSINE };
// How the rows of a reference set that anchors are themselves are told.
enum Own : u32 { OWN_NONE = TERCET_OWN_NONE, OWN_OFFSET = TERCET_OWN_OFFSET, OWN_ROWS = TERCET_OWN_ROWS };

// What the launches find out about a batch: the first of them clears it. The same layout as `Survey` in src/cuda/batch.rs.
struct Survey {
    u64 nearest;     // the largest ~(bits of the squared distance to the mean, row), two halves of 32 bits
    u32 tickets[4];  // of the kernels survey and nearest, and two for the loss whose anchors these are
    u32 bad;         // whether any row is not finite, of many rows; of few,
    u32 bad_of[32];  // a byte for each block of `prepare`: whether any of its rows is not
    u32 shifted;     // whether rows are translated by -x[~nearest & 0xffffffff]
    u32 overflowed;  // whether a loss found that it is not a number
    u32 largest;     // the exponent of the largest scale, of many rows; of few,
    u32 largest_of[32];  // a byte for each block of `prepare`: that of its rows

    DEVICE u32 largest_scale() const {
        u32 most = largest;
#pragma unroll
        for (u32 k = 0; k < 128; ++k) most = most < (largest_of[k / 4] >> (k % 4 * 8) & 0xff) ? largest_of[k / 4] >> (k % 4 * 8) & 0xff : most;
        return most;
    }
    DEVICE bool any_bad() const {
        u32 any = bad;
#pragma unroll
        for (u32 k = 0; k < 32; ++k) any |= bad_of[k];
        return any;
    }
};
static_assert(sizeof(Survey::bad_of) == TERCET_PREPARED_ROWS / (BATCH_THREADS / 32), "a block takes a row a warp");

// A prepared batch, laid out as `Batch` in src/cuda/batch.rs. Arrays are in class order, except x, labels and position.
struct Batch {
    const void* x;        // [rows, dim], `stride` elements from row to row
    i64 stride;
    const i64* labels;    // null: each row is a class of its own, in the given order
    u32* order;           // the row's original index
    u32* position;        // by original index: the row's place in class order
    u32* first;           // the row's class is rows first .. end
    u32* end;
    i64* sorted;          // the labels in sorted runs, and the rows that have them: of many rows, while they are ranked
    u32* sorted_at;
    float* y;             // [padded, dim]: the rows as given, or normalised
    u8* planes;           // y, translated and divided by scale, as the precision stores it, in panels (tile.cuh)
    float* norm;          // the squared norm of what the planes hold; 1 for cosine; NaN if the row is not finite
    float* scale;         // a power of two, which brings the row's largest element to 1 .. 2
    float* terms;         // [held, 2]: the norm, +inf beyond the batch; and -2 scale, by which a product is multiplied
    float* inverse;       // 1 / max(|x|, MIN_NORM), negative if |x| is below MIN_NORM; 1 without normalisation
    double* sums;         // [chunks, dim]: sums of the columns of x, and then the mean [dim]
    double* partials;     // one a block
    u64* column_key;      // what the rows keep as columns (triangle.cuh); null: not wanted
    u32* column_most;
    Survey* survey;
    u32* zeros;           // what a loss counts in and looks at, which starts as zeros: the first launch writes them
    const void* origin;   // the x that has the row all are translated by: of this batch, or that it is compared with
    i64 origin_stride;
    const Survey* origin_survey;
    u32 rows, padded, dim, slabs;
    u32 normalize, unit_norms;
    u32 held;             // rows that have planes and terms: up to whole blocks of a strip
    u32 zeros_count;      // numbers of `zeros`

    // Whether the cosine sees a row that is too short to become a unit vector.
    DEVICE bool is_flat(u32 row) const { return unit_norms && inverse[row] < 0.f; }
    DEVICE Operand operand() const { return {planes, slabs}; }
    DEVICE Lengths lengths() const { return {norm, scale, rows}; }
    DEVICE Columns columns() const { return {column_key, column_most, held}; }
};

// Anchors, and the other rows, which positives and negatives are taken from: a reference set, or the anchors again. The
// same layout as `Sides` in src/cuda/batch.rs.
struct Sides {
    Batch anchors, others;
    u32* first;         // per anchor: its class is the other rows first .. end
    u32* end;
    u32* own;           // per anchor: the other row that is the anchor itself, or NONE; not used if `itself`
    u32* other_first;   // per other row: its class is the anchors other_first .. other_end
    u32* other_end;
    const i64* own_rows;  // for OWN_ROWS: the own rows of the anchors, both by original index
    i64 own_offset;       // for OWN_OFFSET: anchor i is other row own_offset + i, both by original index
    u32 own_kind;         // an Own
    u32 itself;           // whether the others are the anchors

    DEVICE u32 own_of(u32 anchor) const { return itself ? anchor : own[anchor]; }
    DEVICE u32 size_of_class(u32 anchor) const { return end[anchor] - first[anchor]; }
    DEVICE u32 positives(u32 anchor) const {
        const u32 own = own_of(anchor);
        return size_of_class(anchor) - (own >= first[anchor] && own < end[anchor]);
    }
    DEVICE u32 negatives(u32 anchor) const { return others.rows - size_of_class(anchor); }
    DEVICE bool bad() const { return anchors.survey->any_bad() || (!itself && others.survey->any_bad()); }
};

// What a row is multiplied by to be normalised, by a warp; 1 without normalisation. flat: whether its norm is below MIN_NORM.
// T: the type of the caller's rows.
template <class T> DEVICE float factor_of(const Batch& b, const T* x, bool& flat) {
    flat = false;
    if (!b.normalize) return 1.f;
    float squares = 0;
    for (u32 c = threadIdx.x % 32; c < b.dim; c += 32) squares += widen(x[c]) * widen(x[c]);
    const float norm = sqrtf(group_sum<32>(squares));
    flat = norm < float(TERCET_MIN_NORM);
    return is_finite(norm) ? 1.f / (flat ? float(TERCET_MIN_NORM) : norm) : nan_value<float>();
}

// The elements of a row from the caller's numbers, so that a difference of two is rounded once. A normalised row is
// multiplied by its inverse norm first; the product must not fuse with the difference, or equal rows are apart.
// T: the type of the caller's rows, float, f16 or bf16.
template <class T> struct Row {
    const T* x;
    float inverse;  // negative: the row is flat
    DEVICE float operator()(u32 column) const { return rounded_product(widen(x[column]), fabsf(inverse)); }
    // For cosine: too short to become a unit vector.
    DEVICE bool is_flat() const { return inverse < 0.f; }
};
// Row `row`, in class order, of a batch. T: the type of the caller's rows.
template <class T> DEVICE Row<T> original_row(const Batch& b, u32 row) {
    return {static_cast<const T*>(b.x) + b.order[row] * b.stride, b.inverse[row]};
}

// Element `column` of row `row` as the planes have it, which is what products see. P: the precision. panels: of a row.
template <class P> DEVICE float decoded(const Batch& b, u32 row, u32 column, u32 panels) {
    const u8* const planes[2] = {b.planes, b.planes + (P::planes - 1) * PANEL};
    return P::decode(planes, i64(in_planes<P::planes>(row, column * P::bytes, panels) / P::bytes)) * b.scale[row];
}

// The distances of a row from K others from their elements, by a warp; all K are on their way at a time. A lane adds up 8
// columns in f32 and these sums in f64: few roundings one on the other, however long the rows are.
// Of unit vectors 1 - u.v is |u - v|^2 / 2, whose error is relative to itself, as small as it may be.
// kind: a Distance. T: the rows' type.
template <class T, int K> DEVICE void direct_distances(const Row<T>& x, const Row<T> (&y)[K], u32 dim, u32 kind, float (&d)[K]) {
    constexpr u32 SUMMED = 8 * 32;
    double total[K] = {};
    const auto by_product = [&](int k) { return kind == COSINE && (x.is_flat() || y[k].is_flat()); };
    for (u32 from = 0; from < dim; from += SUMMED) {
        const u32 end = from + SUMMED < dim ? from + SUMMED : dim;
        float sum[K] = {};
        for (u32 c = from + threadIdx.x % 32; c < end; c += 32) {
            const float a = x(c);
#pragma unroll
            for (int k = 0; k < K; ++k) {
                const float b = y[k](c), e = a - b;
                sum[k] += by_product(k) ? a * b : e * e;
            }
        }
#pragma unroll
        for (int k = 0; k < K; ++k) total[k] += double(sum[k]);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const float sum = group_sum<32>(float(total[k]));
        d[k] = kind == SQUARED ? sum : kind == EUCLIDEAN ? sqrtf(sum) : by_product(k) ? 1.f - sum : .5f * sum;
    }
}

// The distance of two rows from their elements, by a warp. kind: a Distance. T: the rows' type.
template <class T> DEVICE float direct_distance(const Row<T>& x, const Row<T>& y, u32 dim, u32 kind) {
    const Row<T> others[1] = {y};
    float d[1];
    direct_distances(x, others, dim, kind, d);
    return d[0];
}

// |y_i - y_j|^2 from the product of the rows' planes. Sets `near` if it is below a fixed fraction of the norms: then it
// has cancelled, and near_squared_distance must be taken instead. Few pairs are that near.
DEVICE float squared_distance(float norm_i, float scale_i, float norm_j, float scale_j, float product, bool& near) {
    const float norms = norm_i + norm_j;
    const float d = norms - 2.f * (product * scale_i * scale_j);
    near = d < norms * (1.f / 64);
    return d;
}
// |y_i - y_j|^2 of rows i of `a` and j of `b` from the product of their planes. `near`: near_squared_distance must be
// taken.
DEVICE float squared_distance(const Batch& a, u32 i, const Batch& b, u32 j, float product, bool& near) {
    return squared_distance(a.norm[i], a.scale[i], b.norm[j], b.scale[j], product, near);
}
// |y_i - y_j|^2 of rows i of `a` and j of `b` from the difference of their elements; for cosine 2 (1 - u.v). By a
// thread.
DEVICE float near_squared_distance(const Batch& a, u32 i, const Batch& b, u32 j) {
    float sum = 0;
    // |u - v|^2 is 2 (1 - u.v) for unit vectors alone, and rows below MIN_NORM do not become unit vectors.
    if (a.is_flat(i) || b.is_flat(j)) {
        for (u32 c = 0; c < a.dim; ++c) sum += a.y[i64(i) * a.dim + c] * b.y[i64(j) * b.dim + c];
        return 2.f - 2.f * sum;
    }
    for (u32 c = 0; c < a.dim; ++c) {
        const float e = a.y[i64(i) * a.dim + c] - b.y[i64(j) * b.dim + c];
        sum += e * e;
    }
    return sum;
}

// The same by a warp, which all get.
DEVICE float near_squared_distance_by_warp(const Batch& a, u32 i, const Batch& b, u32 j) {
    const float *x = a.y + i64(i) * a.dim, *y = b.y + i64(j) * b.dim;
    // |u - v|^2 is 2 (1 - u.v) for unit vectors alone, and rows below MIN_NORM do not become unit vectors.
    const bool flat = a.is_flat(i) || b.is_flat(j);
    float sum = 0;
    for (u32 c = threadIdx.x % 32; c < a.dim; c += 32) {
        const float e = x[c] - y[c];
        sum += flat ? x[c] * y[c] : e * e;
    }
    sum = group_sum<32>(sum);
    return flat ? 2.f - 2.f * sum : sum;
}

// Where the pairs of anchors with the rows of their classes begin, for a block that takes anchors that follow each other: a warp
// takes every WARPS-th of them. The block adds up the sizes of all classes before them itself: from cache that takes less than
// another launch.
struct PairStarts {
    static constexpr u32 WARPS = BATCH_THREADS / 32;
    const Sides& sides;
    u32 begin, end;  // the block's anchors
    u32 counted;     // the anchor whose pairs begin at `at`
    u64 at;

    // All threads of the block must call.
    DEVICE PairStarts(const Sides& sides) : sides(sides), at(0) {
        SHARED(u64, of_warp, WARPS);
        const u32 rows = sides.anchors.rows, each = (rows + gridDim.x - 1) / gridDim.x;
        begin = blockIdx.x * each < rows ? blockIdx.x * each : rows;
        end = begin + each < rows ? begin + each : rows;
        counted = begin;
        u64 before = 0;
#pragma unroll 8
        for (u32 i = threadIdx.x; i < begin && begin < end; i += BATCH_THREADS) before += sides.size_of_class(i);
        before = group_sum<32>(before);
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = before;
        __syncthreads();  // the warps' sums are there
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) at += of_warp[w];
    }
    // Where the pairs of an anchor begin, for a warp that goes through its anchors. The first thread writes it down, and behind the
    // last anchor how many pairs there are.
    DEVICE u64 of(u32 row, u64* start) {
        u64 between = 0;
        for (u32 i = counted + threadIdx.x % 32; i < row; i += 32) between += sides.size_of_class(i);
        at += group_sum<32>(between);
        counted = row;
        if (threadIdx.x % 32 == 0) {
            start[row] = at;
            if (row == sides.anchors.rows - 1) start[row + 1] = at + sides.size_of_class(row);
        }
        return at;
    }
};

// Writes what a mined loss says about a batch, as `Output::stats` in src/cuda/arguments.rs has it. lost: the means are NaN.
// too_many: there was no room for the pairs.
DEVICE void write_stats(double* stats, double valid, double active, double mean_positive, double mean_negative, bool lost, double scale,
                        bool too_many = false) {
    reinterpret_cast<i64*>(stats)[0] = i64(valid);
    reinterpret_cast<i64*>(stats)[1] = lost ? 0 : i64(active);
    stats[2] = lost ? nan_value<double>() : mean_positive;
    stats[3] = lost ? nan_value<double>() : mean_negative;
    stats[4] = scale;
    reinterpret_cast<i64*>(stats)[5] = too_many;
}

constexpr u32 SCANNED = TERCET_SCANNED;  // rows of a block of `scan`

// start[i] = size(0) + .. + size(i - 1) for i from 0 to `rows`; true in the one thread that writes start[rows]. A block takes
// SCANNED rows, and adds up everything before them itself: from cache that takes less than to wait for other blocks, or
// for another launch.
// size(i): the number to add up for row i.
template <class F> DEVICE bool scan(u32 rows, u64* start, F size) {
    constexpr u32 ITEMS = SCANNED / BATCH_THREADS, WARPS = BATCH_THREADS / 32;
    static_assert(SCANNED % BATCH_THREADS == 0, "as many rows for each thread");
    SHARED(u64, before_block, WARPS);
    SHARED(u64, of_warp, WARPS);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, base = blockIdx.x * SCANNED;
    u64 before = 0;
#pragma unroll 16
    for (u32 i = threadIdx.x; i < base; i += BATCH_THREADS) before += size(i);
    before = group_sum<32>(before);
    const u32 first = base + threadIdx.x * ITEMS;
    u32 mine[ITEMS];
    u64 sum = 0;
#pragma unroll
    for (u32 k = 0; k < ITEMS; ++k) {
        mine[k] = first + k < rows ? size(first + k) : 0;
        sum += mine[k];
    }
    const u64 up_to = sum_up_to_lane(sum);
    if (lane == 31) {
        before_block[warp] = before;
        of_warp[warp] = up_to;
    }
    __syncthreads();  // the warps' sums are there
    u64 at = up_to - sum;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) at += before_block[w] + (w < warp ? of_warp[w] : 0);
    bool last = false;
#pragma unroll
    for (u32 k = 0; k < ITEMS; ++k) {
        if (first + k < rows) start[first + k] = at;
        at += mine[k];
        if (first + k == rows - 1) {
            start[rows] = at;
            last = true;
        }
    }
    return last;
}

template <class A> DEVICE void exchange(A& x, A& y) {
    const A z = x;
    x = y;
    y = z;
}

// Sorts `size` items by one block. order(i, j): exchanges the items at i and at j > i if they are the wrong way round.
// A bitonic network: each merge begins with the mirror image, so that all comparisons go one way and a size that is no
// power of two only leaves some out.
template <class F> DEVICE void sort(u32 size, F order) {
    const auto step = [&](u32 flip) {
        for (u32 i = threadIdx.x; i < size; i += BATCH_THREADS) {
            const u32 j = i ^ flip;
            if (j > i && j < size) order(i, j);
        }
        __syncthreads();  // the next step compares what this one has exchanged
    };
    for (u32 width = 2; width < 2 * size; width *= 2) {
        step(width - 1);
        for (u32 apart = width / 4; apart > 0; apart /= 2) step(apart);
    }
}

// Writes the gradient with respect to the caller's row, in the caller's type and order, by a warp: from g, the gradient
// with respect to the row as distances see it, through the normalisation, times `scale`. NaN if the batch is `lost`.
// T: the type of the caller's rows.
template <class T> DEVICE void write_gradient(const Batch& b, u32 row, const float* g, float scale, bool lost, void* grad) {
    const u32 lane = threadIdx.x % 32;
    const Row<T> x = original_row<T>(b, row);
    const float inverse = b.inverse[row];
    float along = 0;
    if (b.normalize && inverse > 0.f) {
        for (u32 c = lane; c < b.dim; c += 32) along += g[c] * x(c);
        along = group_sum<32>(along);
    }
    for (u32 c = lane; c < b.dim; c += 32) {
        const float y = b.normalize ? (g[c] - along * x(c)) * fabsf(inverse) : g[c];
        T result;
        narrow(result, lost ? nan_value<float>() : y * scale);
        static_cast<T*>(grad)[i64(b.order[row]) * b.dim + c] = result;
    }
}
