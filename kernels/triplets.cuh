// Losses that choose one negative for each pair of anchor and positive:  relu(d_ap - d_an + m).
//
// starts:   where each anchor's pairs lie in memory; sizes are known on the device alone.
// words:    for random choices, the hash of each row and what it adds to its priorities.
// pairs:    d_ap of each pair, from the elements.
// choose:   Gram tiles; the least key of each pair's candidates, by an integer minimum: no order of blocks matters.
// finish:   the chosen distances from the elements, the losses, and how often each row was chosen.
// links, fill, order:  for the gradient, a list for each row of the pairs that chose it, in the order of the pairs.
// backward: a row gathers the gradients of its triplets, as anchor, positive or negative, in the order of the pairs.
#pragma once
#include "batch.cuh"
#include "pulls.cuh"
#include "push.cuh"
#include "random.cuh"

// How the negative of a pair is chosen.
enum Rule : u32 {
    SEMI_HARD,  // the nearest that is farther than the positive, else the farthest
    HARDEST,    // the nearest
    DRAWN,      // at random of those nearer than the positive plus the margin; `beyond`: and farther than the positive
};

// The same layout as `Args` in src/cuda/triplets.rs. Rows are in class order. An anchor has a pair with each row of its
// class in order, itself included: pair `start[row] + k` is the one with row `first[row] + k`.
struct Args {
    Sides sides;
    u64* start;       // [anchors + 1]: where an anchor's pairs begin
    u32* anchor;      // [capacity]: the pair's anchor
    float* d_ap;      // [capacity]; NaN: not a pair
    u64* key;         // [capacity]: the least key of the pair's candidates
    u64* row_key;     // [anchors]: the least key of the candidates that all of an anchor's pairs share
    u32* word;        // [capacity]: what the pair adds to its priorities
    U32x2* hash[2];   // of the anchors, and of the other rows
    u32* row_word;    // [others]: what a row adds to its priorities
    u32* negative;    // [capacity]: the chosen one of the other rows, or NONE
    float* d_an;      // [capacity]
    float* weight;    // [capacity]: d loss / d (d_ap - d_an)
    u32* chosen;      // [capacity]: the negative by original index; null: not wanted
    u32* times;       // [others]: how often each row is chosen; `starts` writes zeros
    u64* link;        // [others + 1]: where the pairs that chose a row begin in `linked`
    u32* linked;      // [capacity]: pairs, by the row that they chose
    float* losses;    // per anchor by original index; null: not wanted
    float* loss;      // null: not wanted
    double* stats;    // what write_stats writes
    double* partials; // TERCET_STATS a block
    const i64* step;  // of the random choices; null: 0
    const float* upstream;  // [1] (stride 0) or per anchor (stride 1)
    i64 upstream_stride;
    void* grad;       // [rows, dim] of type T, of one side, by original index
    double margin;
    u64 capacity, seed;
    u32 splits, kind, mean;
    u32 which;        // whose gradient: the anchors' or, 1, the reference set's
    u32 beyond;       // DRAWN: only candidates farther than the positive
    u32 once;         // only pairs (a, p) with a before p
};

// Whether there is memory for all pairs; if not, the loss is NaN.
DEVICE bool fits(const Args& args) { return args.start[args.sides.anchors.rows] <= args.capacity; }
// The number of pairs, those of anchors with themselves included.
DEVICE u64 pairs_of(const Args& args) { return args.start[args.sides.anchors.rows]; }

// The kind of distance that is compared: Euclidean ones before the root, which would make some of them equal, except by
// DRAWN, which adds the margin to them. R: the rule.
template <Rule R> DEVICE u32 compared_kind(const Args& args) { return R != DRAWN && args.kind == EUCLIDEAN ? SQUARED : args.kind; }

// Integers in the order of the numbers; -0 comes before 0.
DEVICE u32 ordered(float x) {
    const u32 bits = __float_as_uint(x);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}
constexpr u64 NO_KEY = ~u64(0);  // of no candidate; above every key

// Where the pairs of each anchor begin; and no row has been chosen yet.
DEVICE void starts(const Args& args) {
    for (u32 row = blockIdx.x * BATCH_THREADS + threadIdx.x; row < args.sides.others.rows; row += gridDim.x * BATCH_THREADS)
        args.times[row] = 0;
    scan(args.sides.anchors.rows, args.start, [&](u32 row) { return args.sides.size_of_class(row); });
}

// A warp hashes a row of either side. T: the type of the caller's rows.
template <class T> DEVICE void words(const Args& args) {
    const Sides& sides = args.sides;
    const u32 lane = threadIdx.x % 32, rows = sides.itself ? sides.anchors.rows : sides.anchors.rows + sides.others.rows;
    const U32x2 session = session_of(args.seed, args.step ? *args.step : 0);
    for (u32 i = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; i < rows; i += gridDim.x * (BATCH_THREADS / 32)) {
        const bool other = i >= sides.anchors.rows;
        const Batch& b = other ? sides.others : sides.anchors;
        const u32 row = other ? i - sides.anchors.rows : i;
        const T* x = static_cast<const T*>(b.x) + b.order[row] * b.stride;
        U32x2 hash = {0, 0};
        for (u32 c = lane; c < b.dim; c += 32) {
            const U32x2 one = hash_of_element(__float_as_uint(widen(x[c])), c);
            hash.x += one.x;
            hash.y += one.y;
        }
        hash = {group_sum<32>(hash.x), group_sum<32>(hash.y)};
        if (lane > 0) continue;
        args.hash[other][row] = hash;
        if (other || sides.itself) args.row_word[row] = row_word(session, hash);
    }
}

// A warp takes the pairs of an anchor: their distances. T: the type of the caller's rows. R: the rule.
template <class T, Rule R> DEVICE void pairs(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32;
    for (u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; row < a.rows; row += gridDim.x * (BATCH_THREADS / 32)) {
        if (lane == 0) args.row_key[row] = NO_KEY;
        if (!fits(args)) continue;
        const Row<T> x = original_row<T>(a, row);
        const u32 first = sides.first[row], size = sides.size_of_class(row), own = sides.own_of(row);
        for (u32 k = 0; k < size; ++k) {
            const u64 at = args.start[row] + k;
            const u32 p = first + k;
            const bool is_pair = p != own && (!args.once || (own != NONE && b.order[own] < b.order[p]));
            const float d = is_pair ? direct_distance(x, original_row<T>(b, p), b.dim, compared_kind<R>(args)) : nan_value<float>();
            if (lane > 0) continue;
            args.anchor[at] = row;
            // NaN stands for no pair: a pair at the distance NaN is put at infinity.
            args.d_ap[at] = is_pair && d != d ? __uint_as_float(0x7f800000) : d;
            args.key[at] = NO_KEY;
            if (R == DRAWN)
                args.word[at] = pair_word(session_of(args.seed, args.step ? *args.step : 0), args.hash[0][row], args.hash[!sides.itself][p]);
        }
    }
}

// The shared memory of `choose`. P: the precision.
template <class P> struct ChooseShared {
    typename TileStream<P>::Buffers buffers;
    WeightTile d;  // the distances of a tile; NaN: no candidate
};

// A block takes a row tile with every `splits`-th column tile, and offers the negatives there to the pairs of its rows.
// P: the precision. R: the rule.
template <class P, Rule R> DEVICE void choose(const Args& args) {
    SHARED_DYNAMIC(ChooseShared<P>, s);
    static_assert(has_size<P, ChooseShared<P>>(TERCET_CHOOSE_SHARED), "src/constants.rs");
    constexpr int HALF = TILE / 2;
    static_assert(TILE_THREADS == 2 * TILE, "two threads a row");
    using Tile = GramTile<P>;
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    if (!fits(args)) return;
    const u32 tiles = b.padded / TILE, row_base = blockIdx.x / args.splits * TILE, split = blockIdx.x % args.splits;
    const u32 mine = threadIdx.x / 2, half = threadIdx.x % 2, row = row_base + mine;
    const u64 start = row < a.rows ? args.start[row] : 0;
    const u32 size = row < a.rows ? sides.size_of_class(row) : 0;
    const float margin = float(args.margin);
    u32 first[Tile::ROWS], class_size[Tile::ROWS];
#pragma unroll
    for (int slot = 0; slot < Tile::ROWS; ++slot) {
        const u32 r = row_base + Tile::row_of(slot);
        first[slot] = r < a.rows ? sides.first[r] : 0;
        class_size[slot] = r < a.rows ? sides.end[r] - first[slot] : 0xffffffff;  // beyond the batch: no candidate
    }
    const u32 kind = compared_kind<R>(args);
    const RowLengths<P> lengths(a.lengths(), row_base);
    TileStream<P> stream(s.buffers, a.operand(), b.operand(), b.lengths(), row_base, split, args.splits, tiles);
    for (u32 column_tile = split; column_tile < tiles; column_tile += args.splits) {
        const u32 base[2] = {row_base, column_tile * TILE};
        Tile tile;
        stream.take(tile);
        const auto keep = [&](int r, int c, float squared) {
            s.d[r][c] = kind == SQUARED ? squared : kind == EUCLIDEAN ? sqrtf(squared) : squared * .5f;
        };
        tile.each(
            [&](int slot, int r, int c, float product) {
                const u32 j = base[1] + c;
                s.d[r][c] = nan_value<float>();  // no candidate
                if (j >= b.rows || j - first[slot] < class_size[slot]) return false;
                bool near;
                const float d = squared_distance(lengths.norm[slot], lengths.scale[slot], stream.norm(c), stream.scale(c), product, near);
                near = near || !is_finite(d);
                if (!near) keep(r, c, d);
                return near;
            },
            [&](int, int r, int c) { keep(r, c, near_squared_distance(a, base[0] + r, b, base[1] + c)); });
        __syncthreads();  // the tile's distances are there
        float d[HALF];
        u32 index[HALF], word[R == DRAWN ? HALF : 1];
#pragma unroll
        for (int q = 0; q < HALF; ++q) {
            const u32 column = base[1] + 2 * q + half;
            d[q] = s.d[mine][2 * q + half];
            index[q] = column < b.rows ? b.order[column] : NONE;
            if constexpr (R == DRAWN) word[q] = column < b.rows ? args.row_word[column] : 0;
        }
        // Lowers a key to the least that the row's two threads have.
        const auto offer = [&](u64* to, u64 key) {
            const u64 other = __shfl_xor_sync(group_mask<2>(), key, 1);
            key = other < key ? other : key;
            if (half == 0 && key != NO_KEY) atomicMin(to, key);
        };
        const auto key_of = [](u32 high, u32 index) { return u64(high) << 32 | index; };
        if constexpr (R != DRAWN) {
            // The candidate that all of an anchor's pairs share: the farthest by SEMI_HARD, the nearest by HARDEST.
            u64 least = NO_KEY;
#pragma unroll
            for (int q = 0; q < HALF; ++q) {
                const u64 key = key_of(R == SEMI_HARD ? ~ordered(d[q]) : ordered(d[q]), index[q]);
                if (d[q] == d[q] && key < least) least = key;
            }
            // Rows beyond the batch have no place to write to, and offer nothing.
            offer(&args.row_key[row < a.rows ? row : 0], row < a.rows ? least : NO_KEY);
        }
        if constexpr (R != HARDEST) {
            for (u32 k = 0; k < size; ++k) {
                const float t = args.d_ap[start + k];
                u64 least = NO_KEY;
#pragma unroll
                for (int q = 0; q < HALF; ++q) {
                    if constexpr (R == SEMI_HARD) {
                        const u64 key = key_of(ordered(d[q]), index[q]);
                        if (d[q] > t && key < least) least = key;
                    } else {
                        const bool candidate = t - d[q] + margin > 0.f && (!args.beyond || d[q] > t);
                        const u64 key = key_of(priority(args.word[start + k], word[q]), index[q]);
                        if (candidate && key < least) least = key;
                    }
                }
                offer(&args.key[start + k], least);
            }
        }
        __syncthreads();  // all threads are done with the tile's distances
    }
}

// A warp takes the pairs of an anchor: their negatives and losses. T: the type of the caller's rows. R: the rule.
template <class T, Rule R> DEVICE void finish(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32;
    const bool bad = sides.bad(), lost = bad || !fits(args);
    const float margin = float(args.margin);
    double sums[TERCET_STATS] = {0, 0, 0, 0, 0};  // loss, valid, active, d_ap, d_an
    for (u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; row < a.rows; row += gridDim.x * (BATCH_THREADS / 32)) {
        const u32 anchor = a.order[row], first = sides.first[row], end = sides.end[row];
        const Row<T> x = original_row<T>(a, row);
        double sum = 0;
        bool any = false;
        for (u32 k = 0; k < end - first && fits(args); ++k) {
            const u64 at = args.start[row] + k;
            u32 negative = NONE;
            float d_ap = args.d_ap[at], d_an = 0, loss = 0;
            if (d_ap == d_ap && end - first < b.rows) {
                u64 key = R == HARDEST ? args.row_key[row] : args.key[at];
                if (R == SEMI_HARD && key == NO_KEY) key = args.row_key[row];
                if (key != NO_KEY) negative = b.position[u32(key)];
                // Whichever negative is taken, the loss is NaN: a row is not finite, d_ap is not, or no distance is a
                // number. It is the one of the lowest index.
                if (bad || !is_finite(d_ap) || (R != DRAWN && negative == NONE)) {
                    u32 lowest = NONE;
                    for (u32 j = lane; j < b.rows; j += 32)
                        if ((j < first || j >= end) && b.order[j] < lowest) lowest = b.order[j];
#pragma unroll
                    for (int offset = 16; offset > 0; offset /= 2) {
                        const u32 other = __shfl_xor_sync(0xffffffff, lowest, offset);
                        lowest = other < lowest ? other : lowest;
                    }
                    negative = b.position[lowest];
                }
                if (compared_kind<R>(args) != args.kind) d_ap = sqrtf(d_ap);
                if (negative != NONE) d_an = direct_distance(x, original_row<T>(b, negative), b.dim, args.kind);
                const float t = d_ap - d_an + margin;
                if (R == HARDEST && is_finite(t) && !(t > 0.f)) negative = NONE;
                if (negative != NONE) {
                    const bool number = !bad && is_finite(d_ap) && is_finite(d_an);
                    loss = !number ? nan_value<float>() : t > 0.f ? t : 0.f;
                }
            }
            if (negative != NONE) {
                any = true;
                sum += double(loss);
            }
            __syncwarp();  // all lanes have read what the first one overwrites
            if (lane > 0) continue;
            if (negative != NONE) {
                sums[1] += 1;
                sums[2] += loss > 0.f ? 1 : 0;
                sums[3] += double(d_ap);
                sums[4] += double(d_an);
                atomicAdd(&args.times[negative], 1u);
            }
            args.negative[at] = negative;
            args.d_ap[at] = d_ap;
            args.d_an[at] = d_an;
            args.weight[at] = loss > 0.f ? 1.f : loss;
            if (args.chosen) args.chosen[at] = negative == NONE ? NONE : b.order[negative];
        }
        if (lane > 0) continue;
        if (!any && bad && a.norm[row] != a.norm[row]) sum = double(nan_value<float>());
        sums[0] += sum;
        if (args.losses) args.losses[anchor] = fits(args) ? float(sum) : nan_value<float>();
    }
    double total[TERCET_STATS];
    if (!grid_sums<BATCH_THREADS>(sums, args.partials, sides.anchors.survey->tickets + 2, total)) return;
    const double scale = lost ? double(nan_value<float>()) : args.mean ? 1 / (total[1] > 0 ? total[1] : 1) : 1;
    if (args.loss) *args.loss = lost ? nan_value<float>() : float(total[0] * scale);
    const double valid = total[1] > 0 ? total[1] : 1;
    write_stats(args.stats, total[1], total[2], total[3] / valid, total[4] / valid, lost, scale, !fits(args));
}

// A thread adds a pair to the list of the row that it chose, in any order: `order` sorts the lists.
DEVICE void fill(const Args& args) {
    if (!fits(args)) return;
    for (u64 at = u64(blockIdx.x) * BATCH_THREADS + threadIdx.x; at < pairs_of(args); at += u64(gridDim.x) * BATCH_THREADS) {
        const u32 negative = args.negative[at];
        if (negative != NONE) args.linked[args.link[negative + 1] - atomicAdd(&args.times[negative], 0xffffffff)] = u32(at);
    }
}

// A block sorts the list of a row.
DEVICE void order(const Args& args) {
    if (!fits(args)) return;
    for (u32 row = blockIdx.x; row < args.sides.others.rows; row += gridDim.x) {
        u32* const linked = args.linked + args.link[row];
        sort(u32(args.link[row + 1] - args.link[row]), [&](u32 i, u32 j) {
            if (linked[j] < linked[i]) exchange(linked[i], linked[j]);
        });
    }
}

// What pulls at a row of the side `which`: of its pairs the positive and the negative, then as a positive the anchors of its
// class, then the anchors of the pairs that chose it. T: the type of the caller's rows.
template <class T> struct PullsAt : NoPieces {
    const Args& args;
    u32 row;
    u64 of_pairs, as_positive, count;
    float scale;

    DEVICE PullsAt(const Args& args, u32 row) : args(args), row(row), of_pairs(0), as_positive(0), scale(float(args.stats[4])) {
        const Sides& sides = args.sides;
        if (args.which == 0) of_pairs = 2 * u64(sides.size_of_class(row));
        count = of_pairs;
        if (args.which == 0 && !sides.itself) return;
        as_positive = sides.other_end[row] - sides.other_first[row];
        count += as_positive + (args.link[row + 1] - args.link[row]);
    }
    DEVICE Pull<T> operator()(u64 k) const {
        const Sides& sides = args.sides;
        const bool is_own = k < of_pairs, is_positive = !is_own && k - of_pairs < as_positive;
        u64 at;
        u32 other;
        if (is_own) {
            at = args.start[row] + k / 2;
            other = k % 2 ? args.negative[at] : sides.first[row] + u32(k / 2);
        } else if (is_positive) {
            other = sides.other_first[row] + u32(k - of_pairs);
            at = args.start[other] + row - sides.first[other];
        } else {
            at = args.linked[args.link[row] + (k - of_pairs - as_positive)];
            other = args.anchor[at];
        }
        float weight = args.weight[at];
        if (args.negative[at] == NONE || weight == 0.f) return {nullptr, 0.f, 0.f};
        const bool positive = is_own ? k % 2 == 0 : is_positive;
        weight *= (positive ? 1.f : -1.f) * args.upstream[sides.anchors.order[args.anchor[at]] * args.upstream_stride] * scale;
        return Pull<T>::of(original_row<T>(is_own ? sides.others : sides.anchors, other), args.kind, (positive ? args.d_ap : args.d_an)[at], weight);
    }
};

// A warp writes the gradient of a row of one side. T: the type of the caller's rows.
template <class T> DEVICE void backward(const Args& args) {
    const Sides& sides = args.sides;
    write_all_pulled<T>(args.which ? sides.others : sides.anchors, args.kind, sides.bad() || !fits(args), args.grad,
                        [&](u32 row) { return PullsAt<T>(args, row); });
}

// The kernels of a loss that do not depend on the rule.
#define TRIPLET_KERNELS(stem)                                                                                              \
    KERNEL(stem##_starts, BATCH_THREADS, const Args args) { starts(args); }                                                \
    KERNEL(stem##_links, BATCH_THREADS, const Args args) {                                                                 \
        scan(args.sides.others.rows, args.link, [&](u32 row) { return args.times[row]; });                                 \
    }                                                                                                                      \
    KERNEL(stem##_fill, BATCH_THREADS, const Args args) { fill(args); }                                                    \
    KERNEL(stem##_order, BATCH_THREADS, const Args args) { order(args); }                                                  \
    KERNEL(stem##_backward_f32, BATCH_THREADS, const Args args) { backward<float>(args); }                                 \
    KERNEL(stem##_backward_f16, BATCH_THREADS, const Args args) { backward<f16>(args); }                                   \
    KERNEL(stem##_backward_bf16, BATCH_THREADS, const Args args) { backward<bf16>(args); }
// The kernels of a loss for one rule.
#define CHOICE_KERNELS(stem, rule)                                                                                         \
    KERNEL(stem##_pairs_f32, BATCH_THREADS, const Args args) { pairs<float, rule>(args); }                                 \
    KERNEL(stem##_pairs_f16, BATCH_THREADS, const Args args) { pairs<f16, rule>(args); }                                   \
    KERNEL(stem##_pairs_bf16, BATCH_THREADS, const Args args) { pairs<bf16, rule>(args); }                                 \
    KERNEL(stem##_choose_highest, TILE_THREADS, const Args args) { choose<Split, rule>(args); }                            \
    KERNEL(stem##_choose_half, TILE_THREADS, const Args args) { choose<Half, rule>(args); }                                \
    KERNEL(stem##_finish_f32, BATCH_THREADS, const Args args) { finish<float, rule>(args); }                               \
    KERNEL(stem##_finish_f16, BATCH_THREADS, const Args args) { finish<f16, rule>(args); }                                 \
    KERNEL(stem##_finish_bf16, BATCH_THREADS, const Args args) { finish<bf16, rule>(args); }
