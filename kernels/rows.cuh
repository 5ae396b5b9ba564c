// The engine of paired losses: LANES lanes of a warp look at row b of K matrices at once.
//   HeldRows      keeps the K rows in registers: one read of memory, however many sweeps;
//   StreamedRows  reads them again for each sweep (from cache), for rows of any length.
// Both visit each element exactly once per sweep, always in the same order.
#pragma once
#include "platform.cuh"
#include "reduce.cuh"

// The type of arithmetic: f32, or f64 for f64.
template <class T> struct Arithmetic { using type = float; };
template <> struct Arithmetic<double> { using type = double; };

// K matrices [rows, dim], each with its own distance between rows, in elements.
template <int K> struct Matrices {
    const void* data[K];
    i64 stride[K];
};

// Row `row` of K contiguous matrices [rows, dim] to write to; null: not wanted.
template <int K> struct Targets {
    void* data[K];
    i64 row;

    DEVICE bool any() const {
        bool wanted = false;
#pragma unroll
        for (int k = 0; k < K; ++k) wanted |= data[k] != nullptr;
        return wanted;
    }
};

template <class T, int K, int LANES, int ITEMS> struct HeldRows {
    static constexpr int V = 16 / sizeof(T);
    using A = typename Arithmetic<T>::type;
    static constexpr int lanes = LANES;
    // On a multiprocessor at a time: the more rows are on their way from memory, the nearer to its bandwidth.
    static constexpr int blocks = ITEMS == 1 ? 3 : 2;

    Pack<T, V> held[K][ITEMS];
    i64 dim;
    int lane;

    DEVICE void open(const Matrices<K>& m, i64 row, i64 dim_, int lane_) {
        dim = dim_;
        lane = lane_;
#pragma unroll
        for (int i = 0; i < ITEMS; ++i)
#pragma unroll
            for (int k = 0; k < K; ++k)
                if (column(i) < dim) held[k][i] = load<T, V>(static_cast<const T*>(m.data[k]) + row * m.stride[k] + column(i));
    }
    DEVICE int column(int i) const { return (i * LANES + lane) * V; }

    // f(x): x[k] is one element of row k.
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
    // f(x, y) turns the elements x[k] into y[k] of the targets.
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

// V: elements a load; 1 where the rows are not aligned for more.
template <class T, int K, int V> struct StreamedRows {
    using A = typename Arithmetic<T>::type;
    static constexpr int lanes = 32, blocks = 2;

    const T* from[K];
    i64 dim;
    int lane;

    DEVICE void open(const Matrices<K>& m, i64 row, i64 dim_, int lane_) {
        dim = dim_;
        lane = lane_;
#pragma unroll
        for (int k = 0; k < K; ++k) from[k] = static_cast<const T*>(m.data[k]) + row * m.stride[k];
    }
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
