// Losses that choose one negative for each pair of anchor and positive:  relu(d_ap - d_an + m).
//
// words:    for random choices, the hash of each row and what it adds to its priorities.
// pairs:    where each anchor's pairs lie in memory (sizes are known on the device alone), and d_ap of each, from the elements.
// choose:   the candidates of each pair by products of rows, in strips (choose.cuh); of the random rules by Gram tiles, the least
//           key of each pair's candidates, by an integer minimum: no order of blocks matters.
// finish:   the chosen negatives and their distances from the elements, the losses, and how often each row was chosen.
// links, fill, order:  for the gradient of many rows, a list for each row of the pairs that chose it, in the order of the pairs.
// backward: a row gathers the gradients of its triplets, as anchor, positive or negative, in the order of the pairs. Of few
//           rows a block looks at all pairs for those that chose its own, which takes no other launch.
#pragma once
#include "batch.cuh"
#include "pulls.cuh"
#include "push.cuh"
#include "random.cuh"
#include "strip.cuh"

// How the negative of a pair is chosen.
enum Rule : u32 {
    SEMI_HARD,  // the nearest that is farther than the positive, else the farthest
    HARDEST,    // the nearest
    DRAWN,      // at random of those nearer than the positive plus the margin; `beyond`: and farther than the positive
};

// What a pair has chosen.
struct Chosen {
    u32 negative;  // one of the other rows, or NONE
    float d_an;
};
// What the lists of the gradient need.
struct Listed {
    u32 anchor;  // of the pair; until `finish`, what a random rule's pair adds to its priorities
    u32 pair;    // the pairs, by the row that they chose
};

// The same layout as `Args` in src/cuda/triplets.rs. Rows are in class order. An anchor has a pair with each row of its
// class in order, itself included: pair `start[row] + k` is the one with row `first[row] + k`. A pair takes 20 bytes: `chosen`
// and `listed` lie where `key` and `found` have been, once `finish` has read them.
struct Args {
    Sides sides;
    u64* start;       // [anchors + 1]: where an anchor's pairs begin
    float* d_ap;      // [capacity]; NaN: not a pair
    u64* key;         // [capacity]: the least key of the pair's candidates, of those that were decided by difference
    Chosen* chosen;   // [capacity]: in place of `key`
    u64* found;       // [capacity]: the least number of the pair's candidates by products, and the group that has it
    Listed* listed;   // [capacity]: in place of `found`
    u64* row_key;     // [anchors]: as `key`, of what all of an anchor's pairs share: the farthest, or the nearest
    u64* row_found;   // [anchors]: as `found`
    U32x2* hash[2];   // of the anchors, and of the other rows
    u32* row_word;    // [others]: what a row adds to its priorities
    u32* indices;     // [capacity]: the negative by original index; null: not wanted
    u32* times;       // [others]: how often each row is chosen; null: `backward` looks for the pairs
    u64* link;        // [others + 1]: where the pairs that chose a row begin in `listed`
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
    u32 columns, warp_columns;  // of a tile of a strip, and of a warp of it
    float error;      // of a product, over the sum of both norms; 0: of lower precision
    float direct;     // of a distance by difference, over the distance
};

// Whether there is memory for all pairs; if not, the loss is NaN.
DEVICE bool fits(const Args& args) { return args.start[args.sides.anchors.rows] <= args.capacity; }
// The number of pairs, those of anchors with themselves included.
DEVICE u64 pairs_of(const Args& args) { return args.start[args.sides.anchors.rows]; }

// The kind of distance that is compared: Euclidean ones before the root, which would make some of them equal, except by
// DRAWN, which adds the margin to them. R: the rule.
template <Rule R> DEVICE u32 compared_kind(const Args& args) { return R != DRAWN && args.kind == EUCLIDEAN ? SQUARED : args.kind; }

constexpr u64 NO_KEY = ~u64(0);  // of no candidate; above every key
DEVICE u64 key_of(u32 high, u32 low) { return u64(high) << 32 | low; }

// By how much distances by products are larger than those by difference: the cosine's are 2 (1 - u.v).
DEVICE float doubled(const Args& args) { return args.kind == COSINE ? 2.f : 1.f; }
// A row as `gather` has kept it: the same numbers as those of original_row.
DEVICE Row<float> kept_row(const Batch& b, u32 row) { return {b.y + u64(row) * b.dim, b.inverse[row] < 0.f ? -1.f : 1.f}; }

#include "choose.cuh"

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

// Where the pairs of each anchor begin, and their distances: a warp takes the pairs of an anchor. No row has been chosen yet. T: the type of the caller's rows. R: the rule.
template <class T, Rule R> DEVICE void pairs(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32, thread = blockIdx.x * BATCH_THREADS + threadIdx.x, threads = gridDim.x * BATCH_THREADS;
    if (args.times)
        for (u32 row = thread; row < b.rows; row += threads) args.times[row] = 0;
    if constexpr (R != DRAWN) {
        // The greatest norm, for Window: bits of numbers from 0 on are in order, and those of NaN are above all.
        u32 greatest = 0;
        for (u32 row = thread; row < b.rows; row += threads) {
            const u32 norm = __float_as_uint(b.norm[row]);
            greatest = norm > greatest ? norm : greatest;
        }
        greatest = __reduce_max_sync(0xffffffff, greatest);
        if (lane == 0 && greatest > 0) atomicMax(&a.survey->tickets[3], greatest);
    }
    PairStarts starts(sides);
    for (u32 row = starts.begin + threadIdx.x / 32; row < starts.end; row += PairStarts::WARPS) {
        const u64 start = starts.of(row, args.start);
        const u32 first = sides.first[row], size = sides.size_of_class(row), own = sides.own_of(row);
        if (lane == 0) args.row_key[row] = args.row_found[row] = NO_KEY;
        if (start + size > args.capacity) continue;
        const Row<T> x = original_row<T>(a, row);
        for (u32 k = 0; k < size; ++k) {
            const u64 at = start + k;
            const u32 p = first + k;
            const bool is_pair = p != own && (!args.once || (own != NONE && b.order[own] < b.order[p]));
            const float d = is_pair ? direct_distance(x, original_row<T>(b, p), b.dim, compared_kind<R>(args)) : nan_value<float>();
            if (lane > 0) continue;
            // NaN stands for no pair: a pair at the distance NaN is put at infinity.
            args.d_ap[at] = is_pair && d != d ? __uint_as_float(0x7f800000) : d;
            args.key[at] = NO_KEY;
            if (R == SEMI_HARD) args.found[at] = NO_KEY;
            if (R == DRAWN)
                args.listed[at].anchor = pair_word(session_of(args.seed, args.step ? *args.step : 0), args.hash[0][row], args.hash[!sides.itself][p]);
        }
    }
}

// The shared memory of `draw`. P: the precision.
template <class P> struct ChooseShared {
    typename TileStream<P>::Buffers buffers;
    WeightTile d;  // the distances of a tile; NaN: no candidate
};

// A block takes a row tile with every `splits`-th column tile, and offers the candidates there to the pairs of its rows.
// P: the precision.
template <class P> DEVICE void draw(const Args& args) {
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
    const u32 kind = compared_kind<DRAWN>(args);
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
        u32 index[HALF], word[HALF];
#pragma unroll
        for (int q = 0; q < HALF; ++q) {
            const u32 column = base[1] + 2 * q + half;
            d[q] = s.d[mine][2 * q + half];
            index[q] = column < b.rows ? b.order[column] : NONE;
            word[q] = column < b.rows ? args.row_word[column] : 0;
        }
        // Lowers a key to the least that the row's two threads have.
        const auto offer_least = [&](u64* to, u64 key) {
            const u64 other = __shfl_xor_sync(group_mask<2>(), key, 1);
            key = other < key ? other : key;
            if (half == 0 && key != NO_KEY) atomicMin(to, key);
        };
        for (u32 k = 0; k < size; ++k) {
            const float t = args.d_ap[start + k];
            const u32 of_pair = args.listed[start + k].anchor;
            u64 least = NO_KEY;
#pragma unroll
            for (int q = 0; q < HALF; ++q) {
                const bool candidate = t - d[q] + margin > 0.f && (!args.beyond || d[q] > t);
                const u64 key = key_of(priority(of_pair, word[q]), index[q]);
                if (candidate && key < least) least = key;
            }
            offer_least(&args.key[start + k], least);
        }
        __syncthreads();  // all threads are done with the tile's distances
    }
}

// f(column, d): called for each candidate of an anchor with its distance by difference, by a warp. T: the type of the caller's rows.
template <class T, class F> DEVICE void each_candidate(const Args& args, u32 row, const Row<T>& x, u32 kind, F f) {
    const Sides& sides = args.sides;
    for (u32 column = 0; column < sides.others.rows; ++column)
        if (column - sides.first[row] >= sides.size_of_class(row)) f(column, direct_distance(x, original_row<T>(sides.others, column), sides.others.dim, kind));
}

// The candidate with the least key, by original index, by a warp; NONE if there is none: of those in the group that products
// have found, and of those that were decided by difference before, whose least key is `key`. value(found): the distance that
// products have found, of lower precision, and high(found): the high half of its key. key_at(column, d): the key of a
// candidate; NO_KEY: it is none. T: the type of the caller's rows. R: the rule.
template <class T, Rule R, class V, class H, class K>
DEVICE u32 least_of(const Args& args, u32 row, const Row<T>& x, u64 key, u64 found, V value, H high, K key_at) {
    const Sides& sides = args.sides;
    const u32 kind = compared_kind<R>(args);
    const auto other = [&](u32 column) { return original_row<T>(sides.others, column); };
    const auto take = [&](u32 column, float d) {
        const u64 its = key_at(column, d);
        key = its < key ? its : key;
    };
    if (!Window(args, sides.anchors.norm[row]).is_ordinary()) {
        each_candidate(args, row, x, kind, take);
    } else if (found != NO_KEY && args.error > 0.f) {
        Group(args, u32(found)).each(args, row, x, kind, other, take);
    } else if (found != NO_KEY) {
        const u64 its = key_of(high(found), Group(args, u32(found)).nearest_to(args, row, x, kind, other, value(found) / doubled(args)));
        key = its < key ? its : key;
    }
    return u32(key);
}
// The nearest beyond a pair's distance t. T: the type of the caller's rows. R: the rule.
template <class T, Rule R> DEVICE u32 nearest_beyond(const Args& args, u32 row, const Row<T>& x, u64 at, float t) {
    const u32 minus = ~Window(args, args.sides.anchors.norm[row]).beyond(doubled(args) * t);
    const auto value = [&](u64 found) { return __uint_as_float(u32(found >> 32) - minus); };
    return least_of<T, R>(args, row, x, args.key[at], args.found[at], value, [&](u64 found) { return in_order(value(found)); },
                          [&](u32 column, float d) { return d > t ? key_of(in_order(d), args.sides.others.order[column]) : NO_KEY; });
}
// What all pairs of an anchor share: the farthest candidate, or the nearest. T: the type of the caller's rows. R: the rule.
template <class T, Rule R> DEVICE u32 farthest_or_nearest(const Args& args, u32 row, const Row<T>& x) {
    return least_of<T, R>(args, row, x, args.row_key[row], args.row_found[row], [](u64 found) { return fabsf(from_order(u32(found >> 32))); },
                          [](u64 found) { return u32(found >> 32); }, [&](u32 column, float d) {
                              return d == d ? key_of(R == SEMI_HARD ? ~in_order(d) : in_order(d), args.sides.others.order[column]) : NO_KEY;
                          });
}

// A warp takes the pairs of an anchor: their negatives and losses. T: the type of the caller's rows. R: the rule.
template <class T, Rule R> DEVICE void finish(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32;
    const bool bad = sides.bad(), fit = fits(args), lost = bad || !fit;
    const float margin = float(args.margin);
    double sums[TERCET_STATS] = {0, 0, 0, 0, 0};  // loss, valid, active, d_ap, d_an
    for (u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; row < a.rows; row += gridDim.x * (BATCH_THREADS / 32)) {
        const u32 anchor = a.order[row], first = sides.first[row], end = sides.end[row];
        const Row<T> x = original_row<T>(a, row);
        double sum = 0;
        bool any = false, knows = false;
        u32 shared = NONE;  // what all pairs share, once `knows`
        for (u32 k = 0; k < end - first && fit; ++k) {
            const u64 at = args.start[row] + k;
            u32 negative = NONE;
            float d_ap = args.d_ap[at], d_an = 0, loss = 0;
            if (d_ap == d_ap && end - first < b.rows) {
                u32 index = NONE;
                if constexpr (R == DRAWN) {
                    index = u32(args.key[at]);
                } else if (!bad && is_finite(d_ap)) {
                    if (R == SEMI_HARD) index = nearest_beyond<T, R>(args, row, x, at, d_ap);
                    if (index == NONE && !knows) shared = farthest_or_nearest<T, R>(args, row, x);
                    knows = knows || index == NONE;
                    if (index == NONE) index = shared;
                }
                if (index != NONE) negative = b.position[index];
                // Whichever negative is taken, the loss is NaN: a row is not finite, d_ap is not, or no distance is a
                // number. It is the one of the lowest index.
                if (bad || !is_finite(d_ap) || (R != DRAWN && negative == NONE)) {
                    u32 lowest = NONE;
                    for (u32 j = lane; j < b.rows; j += 32)
                        if ((j < first || j >= end) && b.order[j] < lowest) lowest = b.order[j];
                    negative = b.position[__reduce_min_sync(0xffffffff, lowest)];
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
                if (args.times) atomicAdd(&args.times[negative], 1u);
            }
            args.d_ap[at] = d_ap;
            args.chosen[at] = {negative, d_an};
            args.listed[at].anchor = row;
            if (args.indices) args.indices[at] = negative == NONE ? NONE : b.order[negative];
        }
        if (lane > 0) continue;
        if (!any && bad && a.norm[row] != a.norm[row]) sum = double(nan_value<float>());
        sums[0] += sum;
        if (args.losses) args.losses[anchor] = fit ? float(sum) : nan_value<float>();
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
        const u32 negative = args.chosen[at].negative;
        if (negative != NONE) args.listed[args.link[negative + 1] - atomicAdd(&args.times[negative], 0xffffffff)].pair = u32(at);
    }
}

// A block sorts the list of a row.
DEVICE void order(const Args& args) {
    if (!fits(args)) return;
    for (u32 row = blockIdx.x; row < args.sides.others.rows; row += gridDim.x) {
        Listed* const listed = args.listed + args.link[row];
        sort(u32(args.link[row + 1] - args.link[row]), [&](u32 i, u32 j) {
            if (listed[j].pair < listed[i].pair) exchange(listed[i].pair, listed[j].pair);
        });
    }
}

// Finds the pairs that chose one of the block's rows, each warp in its share of all pairs, and lists them in their order: those
// of the block's row k are begin[k] .. begin[k + 1] of `listed`.
DEVICE void find_pairs(const Args& args, u32* begin) {
    constexpr u32 WARPS = BATCH_THREADS / 32, AT_ONCE = 8;
    static_assert(PULLED_ROWS < 32, "a lane counts for a row, and one more for all rows before");
    SHARED(u32, count, WARPS * (PULLED_ROWS + 1));
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_row = blockIdx.x * PULLED_ROWS, all = u32(pairs_of(args));
    const u32 share = (all / BATCH_THREADS + 1) * 32, from = warp * share < all ? warp * share : all, to = all - from < share ? all : from + share;
    // f(pair, row): called by all lanes for each pair that chose row `row` of the block. Returns how many chose rows before them.
    const auto each = [&](auto f) {
        u32 before = 0;
        for (u32 base = from; base < to; base += 32 * AT_ONCE) {
            u32 row[AT_ONCE];
#pragma unroll
            for (u32 q = 0; q < AT_ONCE; ++q) {
                const u32 at = base + q * 32 + lane;
                const u32 negative = at < to ? args.chosen[at].negative : NONE;
                before += negative < first_row;
                row[q] = negative == NONE ? NONE : negative - first_row;  // below 0 it wraps around
            }
#pragma unroll
            for (u32 q = 0; q < AT_ONCE; ++q)
                for (u32 hits = __ballot_sync(0xffffffff, row[q] < PULLED_ROWS); hits; hits &= hits - 1) {
                    const int hit = __ffs(int(hits)) - 1;
                    f(base + q * 32 + u32(hit), __shfl_sync(0xffffffff, row[q], hit));
                }
        }
        return __reduce_add_sync(0xffffffff, before);
    };
    u32 mine = 0;  // of the row that this lane counts for
    const u32 before = each([&](u32, u32 row) { mine += lane == row; });
    if (lane <= PULLED_ROWS) count[lane * WARPS + warp] = lane < PULLED_ROWS ? mine : before;
    __syncthreads();  // the counts are there
    // Where the next pair goes that this warp finds for this lane's row.
    u32 next = 0;
    if (lane <= PULLED_ROWS) {
        for (u32 w = 0; w < WARPS; ++w) next += count[PULLED_ROWS * WARPS + w];
        for (u32 k = 0; k < lane * WARPS + (lane < PULLED_ROWS ? warp : 0); ++k) next += count[k];
        if (warp == 0) begin[lane] = next;
    }
    each([&](u32 at, u32 row) {
        if (lane != row) return;
        args.listed[next].pair = at;
        ++next;
    });
    __syncthreads();  // the lists are there
}

// What pulls at a row of the side `which`: of its pairs the positive and the negative, then as a positive the anchors of its
// class, then the anchors of the pairs that chose it. T: the type of the caller's rows.
template <class T> struct PullsAt : NoPieces {
    const Args& args;
    u32 row;
    u64 of_pairs, as_positive, list, count;
    float scale;

    // The pairs that chose the row are `listed` from place `list` on.
    DEVICE PullsAt(const Args& args, u32 row, u64 list, u64 listed)
        : args(args), row(row), of_pairs(0), as_positive(0), list(list), scale(float(args.stats[4])) {
        const Sides& sides = args.sides;
        if (args.which == 0) of_pairs = 2 * u64(sides.size_of_class(row));
        count = of_pairs;
        if (args.which == 0 && !sides.itself) return;
        as_positive = sides.other_end[row] - sides.other_first[row];
        count += as_positive + listed;
    }
    DEVICE Pull<T> operator()(u64 k) const {
        const Sides& sides = args.sides;
        const bool is_own = k < of_pairs, is_positive = !is_own && k - of_pairs < as_positive;
        u64 at;
        u32 other;
        if (is_own) {
            at = args.start[row] + k / 2;
            other = k % 2 ? args.chosen[at].negative : sides.first[row] + u32(k / 2);
        } else if (is_positive) {
            other = sides.other_first[row] + u32(k - of_pairs);
            at = args.start[other] + row - sides.first[other];
        } else {
            at = args.listed[list + (k - of_pairs - as_positive)].pair;
            other = args.listed[at].anchor;
        }
        const Chosen chosen = args.chosen[at];
        if (chosen.negative == NONE) return {nullptr, 0.f, 0.f};
        const float d_ap = args.d_ap[at], loss = d_ap - chosen.d_an + float(args.margin);
        if (loss <= 0.f && is_finite(loss)) return {nullptr, 0.f, 0.f};
        const bool positive = is_own ? k % 2 == 0 : is_positive;
        // The loss is NaN where a distance is no number.
        float weight = !is_finite(d_ap) || !is_finite(chosen.d_an) ? nan_value<float>() : positive ? 1.f : -1.f;
        weight *= args.upstream[sides.anchors.order[args.listed[at].anchor] * args.upstream_stride] * scale;
        return Pull<T>::of(original_row<T>(is_own ? sides.others : sides.anchors, other), args.kind, positive ? d_ap : chosen.d_an, weight);
    }
};

// A warp writes the gradient of a row of one side. T: the type of the caller's rows.
template <class T> DEVICE void backward(const Args& args) {
    const Sides& sides = args.sides;
    SHARED(u32, begin, PULLED_ROWS + 1);
    const bool lost = sides.bad() || !fits(args);
    // Whether anchors may have chosen these rows.
    const bool may_be_chosen = args.which == 1 || sides.itself;
    if (may_be_chosen && !args.times && !lost) find_pairs(args, begin);
    write_all_pulled<T>(args.which ? sides.others : sides.anchors, args.kind, lost, args.grad, [&](u32 row) {
        u64 first = 0, end = 0;
        if (may_be_chosen && args.times) {
            first = args.link[row];
            end = args.link[row + 1];
        } else if (may_be_chosen) {
            first = begin[row % PULLED_ROWS];
            end = begin[row % PULLED_ROWS + 1];
        }
        return PullsAt<T>(args, row, first, end - first);
    });
}

// The kernels of a loss that do not depend on the rule.
#define TRIPLET_KERNELS(stem)                                                                                              \
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
    KERNEL(stem##_finish_f32, BATCH_THREADS, const Args args) { finish<float, rule>(args); }                               \
    KERNEL(stem##_finish_f16, BATCH_THREADS, const Args args) { finish<f16, rule>(args); }                                 \
    KERNEL(stem##_finish_bf16, BATCH_THREADS, const Args args) { finish<bf16, rule>(args); }
// The blocks of a shape that a multiprocessor holds.
constexpr int BLOCKS[] = {TERCET_STRIP_BLOCKS};
#define CHOOSE_KERNEL(stem, rule, mode, P, shape, resident, SHAPE, blocks)                                                       \
    IF_TAKEN(TERCET_SEARCH_##mode##_##shape,                                                                                   \
        KERNEL_OF(blocks, stem##_choose_##mode##_##shape, (StripShape<resident, SHAPE>::threads), const Args args) {           \
            Search<P, StripShape<resident, SHAPE>, rule>::run(args);                                                           \
        })
// The kernels of a rule whose candidates are found by products in strips.
#define CHOOSE_KERNELS(stem, rule)                                                                                         \
    CHOOSE_KERNEL(stem, rule, highest, Split, tall, true, TERCET_STRIP_TALL, BLOCKS[0])                                    \
    CHOOSE_KERNEL(stem, rule, highest, Split, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])                                \
    CHOOSE_KERNEL(stem, rule, highest, Split, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])                          \
    CHOOSE_KERNEL(stem, rule, half, Half, tall, true, TERCET_STRIP_TALL, BLOCKS[0])                                        \
    CHOOSE_KERNEL(stem, rule, half, Half, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])                                    \
    CHOOSE_KERNEL(stem, rule, half, Half, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])
