// The gradient of a row as the sum of what pulls at it: other rows, each with a weight. A warp adds up in registers, in a
// fixed order, and each element of a gradient is written once. What pulls at a row that many others have chosen is shared
// among the warps of its block, in equal parts whose sums are added in order; and of a row that very many have chosen, a hub,
// among blocks, which write the sums of pieces first.
#pragma once
#include "batch.cuh"

// A row that more than so many pull at is shared.
constexpr u32 LONG_LIST = TERCET_LONG_LIST;
// The rows whose gradients a block writes: one a warp.
constexpr u32 PULLED_ROWS = BATCH_THREADS / 32;

// What pulls at a row x: it adds slope (x - y) to its gradient, for cosine slope y. T: the type of the caller's rows.
template <class T> struct Pull {
    const T* y;  // null: nothing
    float inverse, slope;  // inverse: of y, as a Row has it

    // The pull of y, with d = |x - y|. weight: d loss / d d; where it is 0 there is no pull.
    static DEVICE Pull of(const Row<T>& y, u32 kind, float d, float weight) {
        const float slope = kind == COSINE ? -weight : kind == SQUARED ? 2.f * weight : d > 0.f ? weight / d : 0.f;
        return {weight == 0.f ? nullptr : y.x, y.inverse, slope};
    }
};

// The sums of COLUMNS columns of a row's gradient, from column `from` on; a lane has every 32nd of them.
// T: the type of the caller's rows.
template <class T> struct PulledSums {
    static constexpr int PIECES = 2, WIDTH = 4, PIECE = 32 * WIDTH, COLUMNS = PIECES * PIECE;
    static constexpr int AT_ONCE = 4;  // rows that are on their way at a time
    float sum[PIECES][WIDTH];
    u32 from, dim;

    DEVICE PulledSums(u32 from, u32 dim) : from(from), dim(dim) {
#pragma unroll
        for (int p = 0; p < PIECES; ++p)
#pragma unroll
            for (int w = 0; w < WIDTH; ++w) sum[p][w] = 0.f;
    }
    // f(place, column, sum): called for each column that this lane has; `place` counts from `from`.
    template <class F> DEVICE void each(F f) {
#pragma unroll
        for (int p = 0; p < PIECES; ++p)
#pragma unroll
            for (int w = 0; w < WIDTH; ++w) {
                const u32 place = p * PIECE + w * 32 + threadIdx.x % 32;
                if (from + place < dim) f(place, from + place, sum[p][w]);
            }
    }
    // Adds the pulls at x that the first `count` lanes hold, in the order of the lanes.
    DEVICE void add(const Row<T>& x, bool difference, const Pull<T>& mine, u32 count) {
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            if (from + p * PIECE >= dim) continue;
            const u32 first = from + p * PIECE + threadIdx.x % 32;
            float a[WIDTH];
#pragma unroll
            for (int w = 0; w < WIDTH; ++w) a[w] = difference && first + w * 32 < dim ? x(first + w * 32) : 0.f;
#pragma unroll 1
            for (u32 k = 0; k < count; k += AT_ONCE) {
                Row<T> row[AT_ONCE];
                float slope[AT_ONCE], y[AT_ONCE][WIDTH];
#pragma unroll
                for (int r = 0; r < AT_ONCE; ++r) {
                    const int lane = int(k) + r;
                    row[r].x = reinterpret_cast<const T*>(__shfl_sync(0xffffffff, reinterpret_cast<u64>(mine.y), lane));
                    row[r].inverse = __shfl_sync(0xffffffff, mine.inverse, lane);
                    slope[r] = __shfl_sync(0xffffffff, mine.slope, lane);
                    if (k + r >= count) row[r].x = nullptr;
#pragma unroll
                    for (int w = 0; w < WIDTH; ++w) y[r][w] = row[r].x && first + w * 32 < dim ? row[r](first + w * 32) : 0.f;
                }
#pragma unroll
                for (int r = 0; r < AT_ONCE; ++r)
                    if (row[r].x)
#pragma unroll
                        for (int w = 0; w < WIDTH; ++w) sum[p][w] += slope[r] * (difference ? a[w] - y[r][w] : y[r][w]);
            }
        }
    }
    // Adds pulls begin .. end of those at x, in order. pull(k): the k-th.
    template <class F> DEVICE void add_all(const Row<T>& x, bool difference, u64 begin, u64 end, const F& pull) {
        for (u64 at = begin; at < end; at += 32) {
            const u64 k = at + threadIdx.x % 32;
            Pull<T> mine = {nullptr, 0.f, 0.f};
            if (k < end) mine = pull(k);
            add(x, difference, mine, end - at < 32 ? u32(end - at) : 32);
        }
    }
};

// Adds pulls begin .. end of those at x, in equal shares of the block's warps: the first warp then has all. All threads must
// call. part: a place for the sums of each warp. pull(k): the k-th.
template <class T, class F> DEVICE void add_by_warps(PulledSums<T>& sums, const Row<T>& x, bool difference, u64 begin, u64 end, float* part, const F& pull) {
    constexpr u32 COLUMNS = PulledSums<T>::COLUMNS;
    const u32 warp = threadIdx.x / 32;
    const u64 each = (end - begin + PULLED_ROWS - 1) / PULLED_ROWS, first = begin + warp * each;
    sums.add_all(x, difference, first < end ? first : end, first + each < end ? first + each : end, pull);
    __syncthreads();  // the first warp is done with the parts before
    sums.each([&](u32 place, u32, float g) { part[warp * COLUMNS + place] = g; });
    __syncthreads();  // the parts are there
    if (warp == 0)
#pragma unroll 1
        for (u32 w = 1; w < PULLED_ROWS; ++w)
            sums.each([&](u32 place, u32, float& g) { g += part[w * COLUMNS + place]; });
}

// What pulls at a row has no sums of pieces that blocks before have made.
struct NoPieces {
    static constexpr u32 pieces = 0;
    DEVICE const float* piece(u32) const { return nullptr; }
};

// Writes the gradient of a row, in the caller's type and order, through the normalisation.
// add(sums): adds what pulls at the row in the columns of `sums`; called once for all columns, or again and again for
// rows of more columns than registers hold. writes: whether this warp writes what it has; if not it only calls `add`.
template <class T, class F> DEVICE void write_pulled(const Batch& b, u32 row, bool writes, void* grad, F add) {
    constexpr u32 COLUMNS = PulledSums<T>::COLUMNS;
    const Row<T> x = original_row<T>(b, row);
    const float inverse = b.inverse[row];
    const bool projects = b.normalize && inverse > 0.f, twice = projects && b.dim > COLUMNS;
    T* const to = static_cast<T*>(grad) + i64(b.order[row]) * b.dim;
    float along = 0;
#pragma unroll 1
    for (int pass = twice ? 0 : 1; pass < 2; ++pass) {
#pragma unroll 1
        for (u32 from = 0; from < b.dim; from += COLUMNS) {
            PulledSums<T> sums(from, b.dim);
            add(sums);
            if (projects && (pass == 0 || !twice)) {
                sums.each([&](u32, u32 c, float g) { along += g * x(c); });
                if (!twice) along = group_sum<32>(along);
            }
            if (pass == 1 && writes)
                sums.each([&](u32, u32 c, float g) { narrow(to[c], b.normalize ? (g - along * x(c)) * fabsf(inverse) : g); });
        }
        if (pass == 0) along = group_sum<32>(along);
    }
}

// A block writes the gradients of PULLED_ROWS rows, in class order; NaN if the batch is `lost`. All threads must call.
// pulls_at(row), called by whole warps: an object whose `count` is how many pull at the row, and which, called with k,
// returns the k-th of them. To these are added `pieces` sums of more, piece(k) the k-th of them, a number a column.
template <class T, class F> DEVICE void write_all_pulled(const Batch& b, u32 kind, bool lost, void* grad, F pulls_at) {
    SHARED(u32, is_long, PULLED_ROWS);
    SHARED(float, part, PULLED_ROWS * PulledSums<T>::COLUMNS);
    const u32 base = blockIdx.x * PULLED_ROWS, warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = base + warp;
    if (lost) {
        if (row < b.rows)
            for (u32 c = lane; c < b.dim; c += 32) narrow(static_cast<T*>(grad)[i64(b.order[row]) * b.dim + c], nan_value<float>());
        return;
    }
    if (row < b.rows) {
        const auto pulls = pulls_at(row);
        if (lane == 0) is_long[warp] = pulls.count > LONG_LIST || pulls.pieces > 0;
    } else if (lane == 0) {
        is_long[warp] = false;
    }
    __syncthreads();  // all warps have told which rows are long
    // First each warp takes its own row, unless it is long, and then all of them take one long row after the other.
#pragma unroll 1
    for (u32 turn = 0; turn <= PULLED_ROWS; ++turn) {
        const bool alone = turn == 0;
        const u32 mine = alone ? warp : turn - 1;
        if (base + mine >= b.rows || is_long[mine] == u32(alone)) continue;
        const auto pulls = pulls_at(base + mine);
        write_pulled<T>(b, base + mine, alone || warp == 0, grad, [&](PulledSums<T>& sums) {
            const Row<T> x = original_row<T>(b, base + mine);
            if (alone) return sums.add_all(x, kind != COSINE, 0, pulls.count, pulls);
            const u32 each = (pulls.pieces + PULLED_ROWS - 1) / PULLED_ROWS;
            for (u32 k = warp * each; k < (warp + 1) * each && k < pulls.pieces; ++k) {
                const float* const piece = pulls.piece(k);
                sums.each([&](u32, u32 c, float& g) { g += piece[c]; });
            }
            add_by_warps(sums, x, kind != COSINE, 0, pulls.count, part, pulls);
        });
    }
}
