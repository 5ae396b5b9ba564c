// batch_all:  sum over all (a, p, n) of relu(d_ap - d_an + m).
//
// With t_ap = d_ap + m, c_an = #{p : t_ap > d_an} and c_ap = #{n : d_an < t_ap}:
//     sum = sum_ap c_ap t_ap - sum_an c_an d_an,      active triplets = sum_ap c_ap,
// and the gradient's weights are W_ap = c_ap, W_an = -c_an: never a list of triplets. docs/batch-all.md derives it.
//
// starts:   where each row's pairs with its class lie in memory; sizes are known on the device alone.
// pairs:    d_ap directly, and the thresholds t_ap.
// sort:     thresholds of large classes, ascending: counts by binary search.
// sweep:    Gram tiles; each pair is counted against its row's thresholds and against its column's, and the row is pushed
//           away from the column by both, over the whole width of the batch: a block owns its rows, and only
//           integers are atomic. Against a reference set there are two sweeps: in the first the rows are the anchors,
//           and in the second, for the reference set's gradient, the columns.
// ranks:    c_ap of large classes from a histogram.
// finish:   the positives' part of the gradient, normalisation, the loss.
// backward: times upstream / M, in the caller's type.
#include "batch.cuh"
#include "push.cuh"

// Distances are compared with each threshold of classes of at most so many rows; those of larger ones are searched.
constexpr u32 COMPARED = TERCET_COMPARED;
constexpr float MASKED = 3.402823466e38f;  // farther than any threshold

// The same layout as `Args` in src/batch_all/cuda.rs. Rows are in class order, except in `gradient`. An anchor has a
// pair with each row of its class in order, itself included: pair start[row] + k is the one with row first[row] + k.
struct Args {
    Sides sides;
    u64* start;       // [anchors + 1]: where an anchor's pairs begin
    float* distance;  // [capacity]: d_ap
    float* threshold; // [capacity]: d_ap + m, -MASKED for the row itself; large classes: ascending, then c_ap (`ranks`)
    u32* owner;       // [capacity]: large classes: which of the anchor's pairs has the threshold
    u32* count;       // [capacity]: c_ap; large classes: a histogram of how many thresholds are not above d_an
    float* reach;     // [anchors]: the largest threshold
    float* pushed;    // [splits, padded, dim]: sum_j S_ij (y_i - y_j), for cosine -sum_j S_ij y_j, of the sweep's rows
    double* sums;     // [splits, padded, 2]: sum_n c_an d_an, sum_n d_an
    float* gradient;  // [rows, dim] by original index, times M, of the sweep's rows; null: not wanted
    double* partials; // TERCET_STATS a block
    float* loss;      // null: not wanted
    double* stats;    // what write_stats writes
    const float* upstream;
    void* grad;       // [rows, dim] of type T, of the sweep's rows by original index
    double margin;
    u64 capacity;
    u32 splits, kind, mean;  // mean: 0 sum, 1 over active triplets, 2 over valid ones
    u32 which;        // the sweep's rows: the anchors or, 1, the reference set
};

// Whether there is memory for all pairs.
DEVICE bool fits(const Args& args) { return args.start[args.sides.anchors.rows] <= args.capacity; }
// Makes the loss NaN.
DEVICE void overflow(const Args& args) { atomicOr(&args.sides.anchors.survey->overflowed, 1u); }
DEVICE float threshold_of(const Args& args, float d_ap) { return d_ap + float(args.margin); }

KERNEL(batch_all_starts, BATCH_THREADS, const Args args) {
    const bool last = scan(args.sides.anchors.rows, args.start, [&](u32 row) { return args.sides.size_of_class(row); });
    if (last && !fits(args)) overflow(args);
}

// A warp takes the pairs of an anchor. T: the type of the caller's rows.
template <class T> DEVICE void pairs(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    if (!fits(args)) return;
    const u32 lane = threadIdx.x % 32;
    for (u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; row < a.rows; row += gridDim.x * (BATCH_THREADS / 32)) {
        const Row<T> x = original_row<T>(a, row);
        const u32 first = sides.first[row], size = sides.size_of_class(row), own_row = sides.own_of(row);
        float reach = -MASKED;
        for (u32 k = 0; k < size; ++k) {
            const u64 at = args.start[row] + k;
            const bool own = first + k == own_row;
            const float d = own ? 0.f : direct_distance(x, original_row<T>(b, first + k), b.dim, args.kind);
            const float t = own ? -MASKED : threshold_of(args, d);
            if (!is_finite(t)) overflow(args);
            reach = fmaxf(reach, t);
            if (lane == 0) {
                args.distance[at] = d;
                args.threshold[at] = t;
                args.count[at] = 0;
                if (size > COMPARED) args.owner[at] = k;
            }
        }
        if (lane == 0) args.reach[row] = reach;
    }
}

// A block sorts the thresholds of an anchor of a large class.
KERNEL(batch_all_sort, BATCH_THREADS, const Args args) {
    if (!fits(args)) return;
    for (u32 row = blockIdx.x; row < args.sides.anchors.rows; row += gridDim.x) {
        const u32 size = args.sides.size_of_class(row);
        if (size <= COMPARED) continue;
        float* threshold = args.threshold + args.start[row];
        u32* owner = args.owner + args.start[row];
        sort(size, [&](u32 i, u32 j) {
            if (threshold[j] < threshold[i]) {
                exchange(threshold[i], threshold[j]);
                exchange(owner[i], owner[j]);
            }
        });
    }
}

// ---- the sweep ----

constexpr int HALF = TILE / 2;
static_assert(TILE_THREADS == 2 * TILE, "two threads a row");

// The shared memory of `sweep`. P: the precision.
template <class P> struct Shared {
    union {
        TileBuffers<P> buffers;
        RowChunks y;
    };
    WeightTile d;               // the distances of a tile; MASKED: not a negative
    WeightTile weight;
    u32 count[COMPARED][TILE];  // c_ap, by pair and row of the tile
};

// What the two threads of an anchor know of it.
struct Anchor {
    u64 start;
    u32 size;
    float reach;

    static DEVICE Anchor of(const Args& args, u32 row) {
        if (row >= args.sides.anchors.rows) return {0, 1, -MASKED};
        return {args.start[row], args.sides.size_of_class(row), args.reach[row]};
    }
    // Compares HALF distances with the anchor's thresholds; returns whether any c may be above 0. Both threads must
    // call.
    // read(q): this thread's distance q.
    // write(q, d, c): called for each distance d = read(q), with the number c of thresholds above it.
    // total(k, n): called with the number n of both threads' distances below threshold k; in large classes with n = 1
    // for each distance that has k thresholds not above it.
    template <class R, class W, class F> DEVICE bool count(const Args& args, R read, W write, F total) const {
        float d[HALF], nearest = MASKED;
#pragma unroll
        for (int q = 0; q < HALF; ++q) {
            d[q] = read(q);
            nearest = fminf(nearest, d[q]);
        }
        nearest = fminf(nearest, __shfl_xor_sync(group_mask<2>(), nearest, 1));
        const float* threshold = args.threshold + start;
        if (nearest < reach && size > COMPARED) {
            // Not unrolled, and so distances are read again: a search takes long anyhow, and its code would come HALF
            // times.
#pragma unroll 1
            for (int q = 0; q < HALF; ++q) {
                const float d = read(q);
                u32 from = 0, to = size;  // the first threshold above d lies in from .. to, or there is none
                if (d < reach) --to;
                else from = to;
                while (from < to) {
                    const u32 middle = (from + to) / 2;
                    if (threshold[middle] > d) to = middle;
                    else from = middle + 1;
                }
                if (from < size) total(from, 1);
                write(q, d, size - from);
            }
            return true;
        }
        u32 c[HALF];
#pragma unroll
        for (int q = 0; q < HALF; ++q) c[q] = 0;
        if (nearest < reach)
            for (u32 k = 0; k < size; ++k) {
                const float t = threshold[k];
                u32 n = 0;
#pragma unroll
                for (int q = 0; q < HALF; ++q) {
                    const u32 active = d[q] < t;
                    c[q] += active;
                    n += active;
                }
                total(k, group_sum<2>(n));
            }
#pragma unroll
        for (int q = 0; q < HALF; ++q) write(q, d[q], c[q]);
        return nearest < reach;
    }
};

// A block takes a row tile with every `splits`-th column tile. P: the precision.
template <class P> DEVICE void sweep(const Args& args) {
    SHARED_DYNAMIC(Shared<P>, s);
    static_assert(has_size<P, Shared<P>>(TERCET_BATCH_ALL_SHARED), "src/constants.rs");
    SHARED(u32, any, 1);
    using Tile = GramTile<P>;
    const Sides& sides = args.sides;
    const Batch &a = args.which ? sides.others : sides.anchors, &b = args.which ? sides.anchors : sides.others;
    const bool rows_count = args.which == 0, columns_count = args.which == 1 || (sides.itself && args.gradient);
    if (!fits(args)) return;
    const u32 tiles = b.padded / TILE, row_tile = blockIdx.x / args.splits, split = blockIdx.x % args.splits;
    const u32 row_base = row_tile * TILE;
    // Two threads look at a row (or column) of the tile, every second distance each.
    const u32 mine = threadIdx.x / 2, half = threadIdx.x % 2;
    const Anchor row = rows_count ? Anchor::of(args, row_base + mine) : Anchor{0, 1, -MASKED};
    double active_distances = 0, distances = 0;

    u32 first[Tile::ROWS], end[Tile::ROWS];
#pragma unroll
    for (int slot = 0; slot < Tile::ROWS; ++slot) {
        const u32 r = row_base + Tile::row_of(slot);
        first[slot] = r < a.rows ? (args.which ? sides.other_first : sides.first)[r] : 0;
        end[slot] = r < a.rows ? (args.which ? sides.other_end : sides.end)[r] : 0xffffffff;
    }
    for (u32 k = threadIdx.x; k < COMPARED * TILE; k += TILE_THREADS) s.count[k / TILE][k % TILE] = 0;
    float* pushed = args.pushed + (i64(split) * a.padded + row_base) * a.dim;
    if (args.gradient)
        for (u32 k = threadIdx.x; k < TILE * a.dim; k += TILE_THREADS) pushed[k] = 0.f;
    __syncthreads();  // the zeros are there: without a tile there is no other barrier

    const Operand side[2] = {a.operand(), b.operand()};
    for (u32 column_tile = split; column_tile < tiles; column_tile += args.splits) {
        const u32 base[2] = {row_base, column_tile * TILE};
        const u32 lowest = base[0] < base[1] ? base[0] : base[1], highest = (base[0] < base[1] ? base[1] : base[0]) + TILE;
        if (sides.itself && b.end[lowest] >= (highest < b.rows ? highest : b.rows)) continue;  // one class
        {
            Tile tile;
            tile.run(s.buffers, side, base);
            const auto keep = [&](int r, int c, float squared) {
                // Not squares, although they compare alike: t comes from a rounded root, and t^2 would not tell equals.
                s.d[r][c] = args.kind == SQUARED ? squared : args.kind == EUCLIDEAN ? sqrtf(squared) : squared * .5f;
            };
            tile.each(
                [&](int slot, int r, int c, float product) {
                    const u32 i = base[0] + r, j = base[1] + c;
                    s.d[r][c] = MASKED;
                    if (j >= b.rows || (j >= first[slot] && j < end[slot])) return false;
                    bool near;
                    const float d = squared_distance(a, i, b, j, product, near);
                    near = near || !is_finite(d);
                    if (!near) keep(r, c, d);
                    return near;
                },
                [&](int, int r, int c) {
                    const float d = near_squared_distance(a, base[0] + r, b, base[1] + c);
                    if (!is_finite(d)) overflow(args);
                    else keep(r, c, d);
                });
        }
        if (threadIdx.x == 0) any[0] = 0;
        __syncthreads();  // the tile's distances are there

        float sum = 0, active_sum = 0;
        bool active = row.count(
            args, [&](int q) { return s.d[mine][2 * q + half]; },
            [&](int q, float d, u32 c) {
                sum += d < MASKED ? d : 0.f;
                if (c) active_sum += float(c) * d;
                s.weight[mine][2 * q + half] = float(c);
            },
            [&](u32 k, u32 n) {
                if (row.size > COMPARED) atomicAdd(&args.count[row.start + k], n);
                else if (half == 0) s.count[k][mine] += n;
            });
        distances += double(sum);
        active_distances += double(active_sum);
        if (!args.gradient) {
            __syncthreads();  // all threads are done with the tile's distances
            continue;
        }
        __syncthreads();  // the rows' counts are there

        // Counts with the tile's columns as anchors: the rows are pushed by both.
        const Anchor column = columns_count ? Anchor::of(args, base[1] + mine) : Anchor{0, 1, -MASKED};
        const auto add = [&](int q, float d, u32 c) {
            float& weight = s.weight[2 * q + half][mine];
            const float both = weight + float(c);
            weight = args.kind != EUCLIDEAN ? both : d > 0.f ? both / d : 0.f;
        };
        active = column.count(args, [&](int q) { return s.d[2 * q + half][mine]; }, add, [](u32, u32) {}) || active;
        if (active) atomicOr(&any[0], 1u);
        __syncthreads();  // the weights are there
        if (!any[0]) {
            __syncthreads();  // all threads have read any[0]
            continue;
        }

        push(s.weight, s.y, a.y + i64(base[0]) * a.dim, b.y + i64(base[1]) * b.dim, b.dim, args.kind != COSINE, pushed);
    }
    // The sums of both threads of a row.
    active_distances = group_sum<2>(active_distances);
    distances = group_sum<2>(distances);
    if (rows_count && row_base + mine < a.rows) {
        double* sums = args.sums + (i64(split) * a.padded + row_base + mine) * 2;
        sums[half] = half ? distances : active_distances;
        if (row.size <= COMPARED && half == 0)
            for (u32 k = 0; k < row.size; ++k)
                if (s.count[k][mine]) atomicAdd(&args.count[row.start + k], s.count[k][mine]);
    }
}

// c_ap of large classes, by a block for each anchor: the k-th smallest threshold, counted from 0, is above those d_an
// that have at most k thresholds not above them.
KERNEL(batch_all_ranks, BATCH_THREADS, const Args args) {
    if (!fits(args)) return;
    SHARED(u32, total, BATCH_THREADS);
    for (u32 row = blockIdx.x; row < args.sides.anchors.rows; row += gridDim.x) {
        const u32 size = args.sides.size_of_class(row);
        if (size <= COMPARED) continue;
        const u64 start = args.start[row];
        const u32 run = (size + BATCH_THREADS - 1) / BATCH_THREADS;
        const u32 begin = threadIdx.x * run < size ? threadIdx.x * run : size, end = begin + run < size ? begin + run : size;
        u32 sum = 0;
        for (u32 k = begin; k < end; ++k) sum += args.count[start + k];
        total[threadIdx.x] = sum;
        __syncthreads();  // the runs' sums are there
        u32 below = 0;
        for (u32 t = 0; t < threadIdx.x; ++t) below += total[t];
        for (u32 k = begin; k < end; ++k) {
            below += args.count[start + k];
            args.threshold[start + args.owner[start + k]] = __uint_as_float(below);
        }
        __syncthreads();  // all threads have read the runs' sums
    }
}

// c_ap of an anchor's k-th pair.
DEVICE u32 count_of(const Args& args, u32 row, u32 k) {
    const u64 at = args.start[row] + k;
    return args.sides.size_of_class(row) > COMPARED ? __float_as_uint(args.threshold[at]) : args.count[at];
}

// The gradient of one of the sweep's rows, by a warp: what it was pushed by, and its positives. As an anchor it is pulled to
// the other rows of its class, as a positive to the anchors of its class; in a batch by itself these are the same rows.
// T: the type of the caller's rows.
template <class T> DEVICE void gradient(const Args& args, u32 row) {
    const Sides& sides = args.sides;
    const Batch &a = args.which ? sides.others : sides.anchors, &b = args.which ? sides.anchors : sides.others;
    const u32 first = (args.which ? sides.other_first : sides.first)[row];
    const u32 end = (args.which ? sides.other_end : sides.end)[row];
    const Row<T> x = original_row<T>(a, row);
    float* g = args.gradient + i64(a.order[row]) * a.dim;
    const float inverse = a.inverse[row], sign = args.kind == SQUARED ? -2.f : -1.f;
    float along = 0;
    for (u32 c = threadIdx.x % 32; c < a.dim; c += 32) {
        float sum = 0;
        for (u32 split = 0; split < args.splits; ++split) sum += args.pushed[(i64(split) * a.padded + row) * a.dim + c];
        sum *= sign;
        for (u32 p = first; p < end; ++p) {
            // Active triplets of the pair with row p, in a batch by itself also of p's with this row. 0 for p = row.
            u32 count = 0;
            if (args.which == 0) count += count_of(args, row, p - first);
            if (args.which == 1 || sides.itself) count += count_of(args, p, row - sides.first[p]);
            if (!count) continue;
            const float d = args.distance[args.which ? args.start[p] + row - sides.first[p] : args.start[row] + p - first];
            const float slope = float(count) * (args.kind == SQUARED ? 2.f : args.kind == COSINE ? 1.f : d > 0.f ? 1.f / d : 0.f);
            const float y = original_row<T>(b, p)(c);
            sum += args.kind == COSINE ? -slope * y : slope * (x(c) - y);
        }
        g[c] = sum;
        along += sum * x(c);
    }
    if (!a.normalize) return;
    along = group_sum<32>(along);
    for (u32 c = threadIdx.x % 32; c < a.dim; c += 32) g[c] = (inverse > 0.f ? g[c] - along * x(c) : g[c]) * fabsf(inverse);
}

// A warp finishes a row of the sweep. The loss is added up after the first sweep. T: the type of the caller's rows.
template <class T> DEVICE void finish(const Args& args) {
    const Sides& sides = args.sides;
    const u32 lane = threadIdx.x % 32, rows = args.which ? sides.others.rows : sides.anchors.rows;
    const bool bad = sides.bad(), lost = bad || sides.anchors.survey->overflowed;
    double sums[TERCET_STATS] = {0, 0, 0, 0, 0};  // loss, valid, active, d_ap, d_an
    for (u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; row < rows; row += gridDim.x * (BATCH_THREADS / 32)) {
        if (args.which == 0) {
            const u32 size = sides.size_of_class(row), positives = sides.positives(row), negatives = sides.negatives(row);
            if (lane == 0) sums[1] += double(positives) * negatives;
            if (!fits(args)) continue;
            for (u32 k = lane; k < size; k += 32) {
                const float d = args.distance[args.start[row] + k];
                const u32 count = count_of(args, row, k);
                if (count) sums[0] += double(threshold_of(args, d)) * count;
                sums[2] += count;
                sums[3] += double(d) * negatives;
            }
            for (u32 split = lane; split < args.splits; split += 32) {
                const double* of_row = args.sums + (i64(split) * sides.anchors.padded + row) * 2;
                sums[0] -= of_row[0];
                sums[4] += of_row[1] * positives;
            }
        }
        if (args.gradient && fits(args)) gradient<T>(args, row);
    }
    if (args.which == 1) return;
    double total[TERCET_STATS];
    if (!grid_sums<BATCH_THREADS>(sums, args.partials, sides.anchors.survey->tickets + 2, total)) return;
    const double over = args.mean == 0 ? 1 : args.mean == 1 ? total[2] : total[1];
    const double scale = over > 0 ? 1 / over : 1;
    if (args.loss) *args.loss = lost ? nan_value<float>() : float(total[0] > 0 ? total[0] * scale : 0);
    const double valid = total[1] > 0 ? total[1] : 1;
    write_stats(args.stats, total[1], total[2], total[3] / valid, total[4] / valid, lost, lost ? nan_value<double>() : scale,
                !fits(args));
}

// Writes the gradient of the sweep's rows. T: the type of the caller's rows.
template <class T> DEVICE void backward(const Args& args) {
    const u64 count = u64(args.which ? args.sides.others.rows : args.sides.anchors.rows) * args.sides.anchors.dim;
    const float factor = *args.upstream * float(args.stats[4]);  // NaN if the batch is lost
    for (u64 i = u64(blockIdx.x) * BATCH_THREADS + threadIdx.x; i < count; i += u64(gridDim.x) * BATCH_THREADS) {
        T y;
        narrow(y, args.gradient[i] * factor);
        static_cast<T*>(args.grad)[i] = y;
    }
}

KERNEL(batch_all_sweep_highest, TILE_THREADS, const Args args) { sweep<Split>(args); }
KERNEL(batch_all_sweep_half, TILE_THREADS, const Args args) { sweep<Half>(args); }
// The kernels for rows of type T.
#define OF_TYPE(dtype, T)                                                                     \
    KERNEL(batch_all_pairs_##dtype, BATCH_THREADS, const Args args) { pairs<T>(args); }       \
    KERNEL(batch_all_finish_##dtype, BATCH_THREADS, const Args args) { finish<T>(args); }     \
    KERNEL(batch_all_backward_##dtype, BATCH_THREADS, const Args args) { backward<T>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
