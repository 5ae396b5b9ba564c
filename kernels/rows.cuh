// How paired losses read their rows: a group of lanes of a warp looks at the same row of K matrices at once.
//   HeldRows      keeps the K rows in registers: one read of memory, however many sweeps;
//   StreamedRows  reads them again for each sweep (from cache), for rows of any length.
// Both visit each element exactly once per sweep, always in the same order.
//
// T, everywhere below: the type of the rows, double, float, f16 or bf16. K: the number of matrices.
#pragma once
#include "platform.cuh"
#include "reduce.cuh"

// The type of arithmetic for rows of type T: f64 for f64, else f32.
template <class T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };

// K matrices [rows, dim], each with its own distance between rows, in elements. The same layout as `Matrices` in
// src/cuda/paired.rs.
template <int K> struct Matrices {
    const void* data[K];
    i64 stride[K];
};

// Where to write: row `row` of each of K contiguous matrices [rows, dim]; null: not wanted.
template <int K> struct Targets {
    void* data[K];
    i64 row;

    // Whether any of the matrices is wanted.
    DEVICE bool any() const {
        bool wanted = false;
#pragma unroll
        for (int k = 0; k < K; ++k) wanted |= data[k] != nullptr;
        return wanted;
    }
};

// LANES: lanes to a row. ITEMS: vectors of 16 bytes that a lane holds of each row.
template <class T, int K, int LANES, int ITEMS> struct HeldRows {
    static constexpr int V = 16 / sizeof(T);
    using A = typename Arithmetic<T>::type;
    static constexpr int lanes = LANES;
    // Blocks on a multiprocessor at a time: the more rows are in flight from memory, the nearer to its bandwidth.
    static constexpr int blocks = ITEMS == 1 ? 3 : 2;

    Pack<T, V> held[K][ITEMS];
    i64 dim;
    int lane;

    // Reads row `row` of each matrix; `lane_` is this thread's among the `lanes` of the row.
    DEVICE void open(const Matrices<K>& m, i64 row, i64 dim_, int lane_) {
        dim = dim_;
        lane = lane_;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i)
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (column(i) < dim) held[k][i] = load<T, V>(static_cast<const T*>(m.data[k]) + row * m.stride[k] + column(i));
    }
    // The first column of this lane's vector i.
    DEVICE int column(int i) const { return (i * LANES + lane) * V; }

    // f(x): called for each column that this lane holds; x[k] is the element of row k.
    template <class F> DEVICE void sweep(F f) const {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i)
            if (column(i) < dim)
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    A x[K];
#pragma unroll
                    for (int k = 0; k < K; ++k) x[k] = widen(held[k][i].v[v]);
                    f(x);
                }
    }
    // f(x, y): called for each column that this lane holds; sets y[k], which goes to target k, from x[k] of row k.
    template <class F> DEVICE void map(const Targets<K>& to, F f) const {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i)
            if (column(i) < dim) {
                Pack<T, V> result[K];
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    A x[K], y[K];
#pragma unroll
                    for (int k = 0; k < K; ++k) x[k] = widen(held[k][i].v[v]);
                    f(x, y);
#pragma unroll
                    for (int k = 0; k < K; ++k) narrow(result[k].v[v], y[k]);
                }
#pragma unroll
                for (int k = 0; k < K; ++k)
                    if (to.data[k]) store<T, V>(static_cast<T*>(to.data[k]) + to.row * dim + column(i), result[k]);
            }
    }
};

// V: elements a load; 1 if the rows are not aligned for more.
template <class T, int K, int V> struct StreamedRows {
    using A = typename Arithmetic<T>::type;
    static constexpr int lanes = 32, blocks = 2;

    const T* from[K];
    i64 dim;
    int lane;

    // Takes row `row` of each matrix; `lane_` is this thread's among the `lanes` of the row.
    DEVICE void open(const Matrices<K>& m, i64 row, i64 dim_, int lane_) {
        dim = dim_;
        lane = lane_;
#pragma unroll
        for (int k = 0; k < K; ++k) from[k] = static_cast<const T*>(m.data[k]) + row * m.stride[k];
    }
    // f(x): called for each column that this lane takes; x[k] is the element of row k.
    template <class F> DEVICE void sweep(F f) const {
#pragma unroll 1  // warps hide the latency; unrolling would only make the image four times as large
        for (i64 column = i64(lane) * V; column < dim; column += 32 * V) {
            Pack<T, V> pack[K];
#pragma unroll
            for (int k = 0; k < K; ++k) pack[k] = load<T, V>(from[k] + column);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A x[K];
#pragma unroll
                for (int k = 0; k < K; ++k) x[k] = widen(pack[k].v[v]);
                f(x);
            }
        }
    }
    // f(x, y): called for each column that this lane takes; sets y[k], which goes to target k, from x[k] of row k.
    template <class F> DEVICE void map(const Targets<K>& to, F f) const {
#pragma unroll 1  // warps hide the latency; unrolling would only make the image four times as large
        for (i64 column = i64(lane) * V; column < dim; column += 32 * V) {
            Pack<T, V> pack[K];
#pragma unroll
            for (int k = 0; k < K; ++k) pack[k] = load<T, V>(from[k] + column);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A x[K], y[K];
#pragma unroll
                for (int k = 0; k < K; ++k) x[k] = widen(pack[k].v[v]);
                f(x, y);
#pragma unroll
                for (int k = 0; k < K; ++k) narrow(pack[k].v[v], y[k]);
            }
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (to.data[k]) store<T, V>(static_cast<T*>(to.data[k]) + to.row * dim + column, pack[k]);
        }
    }
};
