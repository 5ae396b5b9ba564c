// A batch of embeddings made ready for mined losses (batch.cu): rows in the order of their classes, so that each class is
// one contiguous block; normalised; translated, in planes of bytes, for the tile engine.
#pragma once
#include "distance.cuh"
#include "reduce.cuh"
#include "tile.cuh"

#define BATCH_THREADS 256

constexpr u32 NONE = 0xffffffff;

// What the preparation finds out; zeros at launch.
struct Survey {
    u64 nearest;  // max of ~(bits of the squared distance to the mean, row)
    u32 tickets[2];
    u32 bad;      // a row that is not finite
    u32 shifted;  // whether rows are translated by -x[~nearest & 0xffffffff]
};

// The same layout as `Batch` in src/cuda/batch.rs. All in class order but x and labels.
struct Batch {
    const void* x;        // [rows, dim], `stride` elements from row to row
    i64 stride;
    const i64* labels;    // null: one class of its own for each row, in the given order
    u32* order;           // the row's original index
    u32* position;        // by original index: the row's place in class order
    u32* first;           // its class: rows first .. end
    u32* end;
    float* y;             // [padded, dim]: as given, or normalised
    u8* plane[2];         // [padded, slabs * SLAB]: the same, translated, / scale
    float* norm;          // the squared norm of what the planes have; 1 for cosine
    float* scale;         // a power of two
    float* inverse;       // 1 / max(|x|, MIN_NORM), negative where the minimum took over; 1 without normalisation
    double* sums;         // [chunks, dim] and then the mean [dim]
    double* partials;     // one a block
    Survey* survey;
    const void* origin;   // the batch whose nearest row all are moved by: x itself, or the one it is compared with
    i64 origin_stride;
    const Survey* origin_survey;
    u32 rows, padded, dim, slabs;
    u32 centre, normalize, unit_norms;
    u32 padding;          // to the end of 8 bytes: the host's struct has no gaps

    DEVICE Operand operand() const { return {{plane[0], plane[1]}, slabs}; }
    DEVICE Lengths lengths() const { return {norm, scale, rows}; }
};

// Anchors, and the rows that their positives and negatives are drawn from: a reference set, or the anchors again. The same
// layout as `Sides` in src/cuda/batch.rs.
struct Sides {
    Batch anchors, others;
    u32* first;         // per anchor: its class among the others is first .. end
    u32* end;
    u32* own;           // per anchor: the other row that it is itself, or NONE; not for a batch by itself
    u32* other_first;   // per other row: its class among the anchors
    u32* other_end;
    const i64* own_rows;  // [anchors.rows] by original index, for own_kind 2
    i64 own_offset;       // for own_kind 1
    u32 own_kind;         // 0: none
    u32 itself;           // whether the others are the anchors

    DEVICE u32 own_of(u32 anchor) const { return itself ? anchor : own[anchor]; }
    DEVICE u32 size_of_class(u32 anchor) const { return end[anchor] - first[anchor]; }
    DEVICE u32 positives(u32 anchor) const {
        const u32 own = own_of(anchor);
        return size_of_class(anchor) - (own >= first[anchor] && own < end[anchor]);
    }
    DEVICE u32 negatives(u32 anchor) const { return others.rows - size_of_class(anchor); }
    DEVICE bool bad() const { return anchors.survey->bad || others.survey->bad; }
};

// f of each pair of elements of rows i and j of a batch, by a warp: from the caller's numbers, so that a difference is
// rounded once. Normalised rows are multiplied by their inverse norms first; the product must not fuse with the difference,
// or equal rows are apart.
template <class T> struct Row {
    const T* x;
    float factor;
    DEVICE float operator()(u32 column) const { return rounded_product(widen(x[column]), factor); }
};
template <class T> DEVICE Row<T> original_row(const Batch& b, u32 row) {
    return {static_cast<const T*>(b.x) + b.order[row] * b.stride, fabsf(b.inverse[row])};
}

// The distance of two rows by a warp, directly. kind: 0 squared, 1 Euclidean, 2 cosine.
template <class T> DEVICE float direct_distance(const Row<T>& x, const Row<T>& y, u32 dim, u32 kind) {
    float sum = 0;
    for (u32 c = threadIdx.x % 32; c < dim; c += 32) {
        const float a = x(c), b = y(c), e = a - b;
        sum += kind == 2 ? a * b : e * e;
    }
    sum = group_sum<32>(sum);
    return kind == 0 ? sum : kind == 1 ? sqrtf(sum) : 1.f - sum;
}

// |y_i - y_j|^2 from the product of the rows' planes. Where it is `near`, below a fixed fraction of the norms, the product
// has cancelled, and the difference must be taken: few pairs are that near.
DEVICE float squared_distance(float norm_i, float scale_i, float norm_j, float scale_j, float product, bool& near) {
    const float norms = norm_i + norm_j;
    const float d = norms - 2.f * (product * scale_i * scale_j);
    near = d < norms * (1.f / 64);
    return d;
}
DEVICE float squared_distance(const Batch& a, u32 i, const Batch& b, u32 j, float product, bool& near) {
    return squared_distance(a.norm[i], a.scale[i], b.norm[j], b.scale[j], product, near);
}
DEVICE float near_squared_distance(const Batch& a, u32 i, const Batch& b, u32 j) {
    float sum = 0;
    // |u - v|^2 is 2 (1 - u.v) of unit vectors, which rows below MIN_NORM do not become.
    if (a.unit_norms && (a.inverse[i] < 0.f || b.inverse[j] < 0.f)) {
        for (u32 c = 0; c < a.dim; ++c) sum += a.y[i64(i) * a.dim + c] * b.y[i64(j) * b.dim + c];
        return 2.f - 2.f * sum;
    }
    for (u32 c = 0; c < a.dim; ++c) {
        const float e = a.y[i64(i) * a.dim + c] - b.y[i64(j) * b.dim + c];
        sum += e * e;
    }
    return sum;
}

// start[i] = the sum of size(0) .. size(i - 1), for i up to `rows`. By one block: each thread adds up a run.
template <class F> DEVICE void scan(u32 rows, u64* start, F size) {
    SHARED(u64, total, BATCH_THREADS);
    const u32 run = (rows + BATCH_THREADS - 1) / BATCH_THREADS;
    const u32 begin = threadIdx.x * run < rows ? threadIdx.x * run : rows, end = begin + run < rows ? begin + run : rows;
    u64 sum = 0;
#pragma unroll 8
    for (u32 i = begin; i < end; ++i) sum += size(i);
    total[threadIdx.x] = sum;
    __syncthreads();
    u64 at = 0;
    for (u32 t = 0; t < threadIdx.x; ++t) at += total[t];
#pragma unroll 8
    for (u32 i = begin; i < end; ++i) {
        start[i] = at;
        at += size(i);
    }
    if (threadIdx.x == BATCH_THREADS - 1) start[rows] = at;
}

template <class A> DEVICE void exchange(A& x, A& y) {
    const A z = x;
    x = y;
    y = z;
}

// Sorts by one block: `order(i, j)` exchanges what is at i and at j > i where it is the wrong way round. Bitonic: each merge
// begins with the mirror image, so that all comparisons go one way and a size that is no power of two only leaves some out.
template <class F> DEVICE void sort(u32 size, F order) {
    const auto step = [&](u32 flip) {
        for (u32 i = threadIdx.x; i < size; i += BATCH_THREADS) {
            const u32 j = i ^ flip;
            if (j > i && j < size) order(i, j);
        }
        __syncthreads();
    };
    for (u32 width = 2; width < 2 * size; width *= 2) {
        step(width - 1);
        for (u32 apart = width / 4; apart > 0; apart /= 2) step(apart);
    }
}

// The gradient with respect to a given row, by a warp, from g, that with respect to the row as distances see it: through the
// normalisation, times `scale`, in the caller's type and order; NaN where all is `lost`.
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
