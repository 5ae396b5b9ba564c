// batch_hard:  per anchor a, the farthest positive p and the nearest negative n;  relu(d_ap - d_an + m), or softplus(d_ap - d_an).
//
// negatives: products of tiles; each lane of a row keeps the least, and which tile it is in. Each block takes a block of
//            rows and every `splits`-th tile of columns.
// triangle:  the same of half of the tiles, where many rows are compared with themselves: beyond the square of a block of rows
//            with itself each column keeps the least of its products too (triangle.cuh).
// finish:    per anchor a warp finds the farthest positive by its elements, O(P D), and the nearest negative by those of the
//            few rows that the products cannot tell from it: the mined pairs carry no error of the products.
// runs, links: for the gradient of many rows, which anchors have chosen each of them: the choices ranked by what they chose.
// hubs:      the sums of what pulls at rows that very many anchors have chosen, piece by piece of the ranked choices.
// backward:  row i gathers the gradients of its triplets, as anchor, positive or negative, in the order of the anchors. Of few
//            rows a block looks at all choices for its own ones, which takes no other launch.
// Of equal distances the lowest original index wins: positives come in that order, and negatives compare it.
#include "batch.cuh"
#include "farthest.cuh"
#include "pulls.cuh"
#include "ranks.cuh"
#include "strip.cuh"

// The same layout as `Args` in src/batch_hard/cuda.rs. Arrays per anchor are by original index. Choice 2 i is that of anchor
// i's positive, and choice 2 i + 1 that of its negative.
struct Args {
    Sides sides;
    float* candidate;     // [anchors, splits, lanes]: the least number of a lane of the strip
    u32* candidate_tile;  // [anchors, splits, lanes]: the tile of columns that has it, or NONE; and SEVERAL
    u32* positive;        // per anchor, by original index; NONE without a triplet; null: not wanted
    u32* negative;
    u32* choice;          // [2 anchors]: the chosen one of the other rows, in class order; NONE without a triplet
    float* d_ap;          // per anchor
    float* d_an;
    float* weight;        // per anchor: d loss / d (d_ap - d_an)
    float* losses;        // per anchor; null: not wanted
    float* loss;          // null: not wanted
    double* stats;        // what write_stats writes
    double* partials;     // TERCET_STATS a block
    const float* upstream;  // [1] (stride 0) or per anchor (stride 1)
    i64 upstream_stride;
    void* grad;           // [rows, dim] of type T, of the side `which`, by original index
    u32* sorted;          // [2 anchors]: the chosen rows in sorted runs, and which choices these are
    u32* sorted_at;
    u32* linked;          // [2 anchors]: the choices, by what they chose; null: `backward` looks for them
    u32* link;            // [others]: where in `linked` those of a row begin, and
    u32* link_end;        // where they end
    float* hub_sums;      // [pieces of `linked`, 2, dim]: what pulls at the hub of a piece's first choice, and of its last
    double margin;
    u32 splits, kind, soft, mean;
    u32 which;            // whose gradient: the anchors' or, 1, the reference set's
    u32 at_once;          // anchors that a block of `finish` takes at a time: 8, 16 or 32
    u32 columns, warp_columns;  // of a tile, and of a warp of it
    float error;          // of a product, over the sum of both norms; 0: of lower precision
    u32 warp_rows;        // of a warp of a tile
};

// Of a candidate's tile: another tile of the lane may be as near.
constexpr u32 SEVERAL = 0x80000000;

// By how much the least of a row's numbers `norm_j - 2 x.y_j` may be exceeded by that of the nearest row, because both are
// off by the error of products. norm: the row's squared norm.
//
// A number is off by args.error (norm + norm_j) at most. The nearest row j and the one that seems to be, at distance
// d = norm + least, are no longer than sqrt(norm) + sqrt(d), so norm_j <= 2 (norm + d), and both errors together are at most
// 2 args.error (3 norm + 2 d). Numbers below the normal ones are off absolutely.
DEVICE float window(const Args& args, float norm, float least) {
    if (args.error == 0.f) return 0.f;  // of lower precision: only what is equal counts
    return fmaf(2.f * args.error, fmaf(3.f, norm, 2.f * fmaxf(norm + least, 0.f)), 0x1p-120f);
}

// A block finds, for each row of block `block` of rows, the least of `norm_j - 2 x.y_j` over the rows j of other classes: the
// squared distance less what is the same for all j. Each lane of a row keeps its own least, and the tile that it is in;
// `finish` looks at the lane's columns of that tile. The block is part `split` of those of its rows, and takes every
// splits-th tile from `first` on. HALF: the columns are the rows, and those beyond the block's own keep their least too, of
// `norm_i - 2 x_i.x` over the rows i of other classes. P: the precision. S: the shape.
template <class P, class S, bool HALF> DEVICE void find_least(const Args& args, typename Strip<P, S>::Shared& shared, u32 block, u32 split, u32 first) {
    using Strip = ::Strip<P, S>;
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 base = block * S::rows;
    const u32 tiles = (b.rows + S::columns - 1) / S::columns, last = base + S::rows < a.rows ? base + S::rows - 1 : a.rows - 1;
    // Rows lie in class order: those of the rows' own classes follow each other.
    const u32 own_begin = sides.first[base], own_end = sides.end[last];
    float best[Strip::ROWS], second[Strip::ROWS], scale[Strip::ROWS], norm[Strip::ROWS];
    u32 best_tile[Strip::ROWS];
    // Long rows leave no registers for the terms: these are read again for each tile.
    const auto read_terms = [&] {
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) {
            const u32 row = base + Strip::row_of(r);
            if constexpr (HALF) {
                const Pack<float, 2> terms = load<float, 2>(a.terms + row * 2);
                norm[r] = terms.v[0];
                scale[r] = -0.5f * terms.v[1];
            } else scale[r] = row < a.rows ? a.scale[row] : 1.f;
        }
    };
    if (S::resident) read_terms();
#pragma unroll
    for (int r = 0; r < Strip::ROWS; ++r) {
        best[r] = second[r] = __int_as_float(0x7f800000);
        best_tile[r] = NONE;
    }
    Strip strip(shared, a.operand(), b.operand(), b.terms, block, first, args.splits, tiles);
#pragma unroll 1
    for (u32 tile = first; tile < tiles; tile += args.splits) {
        strip.take();
        LeastOfColumns<P, S> of_columns;
        if constexpr (HALF) of_columns.ask(a.columns(), tile);
        // All threads agree. A vote tells the compiler, and who counts instructions, that they do.
        if (__any_sync(0xffffffff, tile * S::columns < own_end && (tile + 1) * S::columns > own_begin)) {
            // A product of -inf is a number of +inf, which is never the least.
#pragma unroll
            for (int r = 0; r < Strip::ROWS; ++r) {
                const u32 row = base + Strip::row_of(r) < a.rows ? base + Strip::row_of(r) : last;
                const u32 first = sides.first[row], size = sides.end[row] - first;
#pragma unroll
                for (int q = 0; q < Strip::COLUMNS; ++q)
                    if (tile * S::columns + Strip::column_of(Strip::lane(), q) - first < size) strip.product(r, q) = -__int_as_float(0x7f800000);
            }
        }
        float least[Strip::ROWS];
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) least[r] = __int_as_float(0x7f800000);
        if (!S::resident) read_terms();
#pragma unroll
        for (int j = 0; j < Strip::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> terms = strip.terms_of(j);
#pragma unroll
            for (int r = 0; r < Strip::ROWS; ++r)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float scaled = strip.product(r, 2 * j + e) * terms.v[2 * e + 1];
                    least[r] = fminf(least[r], fmaf(scaled, scale[r], terms.v[2 * e]));
                    if constexpr (HALF) of_columns.take(r, 2 * j + e, fmaf(scaled, scale[r], norm[r]));
                }
        }
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) {
            second[r] = fminf(second[r], fmaxf(best[r], least[r]));
            best_tile[r] = least[r] < best[r] ? tile : best_tile[r];
            best[r] = fminf(best[r], least[r]);
        }
        if constexpr (HALF)
            of_columns.give(a.columns(), tile, base, [&](u32 column, float number) { return number + window(args, a.terms[column * 2], number); });
    }
#pragma unroll
    for (int r = 0; r < Strip::ROWS; ++r) {
        const u32 row = base + Strip::row_of(r);
        if (row >= a.rows) continue;
        const u64 at = (u64(row) * args.splits + split) * Strip::LANES + Strip::lane();
        const bool several = second[r] <= best[r] + window(args, a.norm[row], best[r]) && best_tile[r] != NONE;
        args.candidate[at] = best[r];
        args.candidate_tile[at] = best_tile[r] | (several ? SEVERAL : 0u);
    }
}

// The least of each row of all tiles. P: the precision. S: the shape.
template <class P, class S> DEVICE void negatives(const Args& args) {
    using Shared = typename Strip<P, S>::Shared;
    SHARED_DYNAMIC(Shared, shared);
    const u32 block = blockIdx.x / args.splits, split = blockIdx.x % args.splits;
    find_least<P, S, false>(args, shared, block, split, split);
}
// The least of each row, and of each column, of half of the tiles. P: the precision. S: the shape.
template <class P, class S> DEVICE void triangle(const Args& args) {
    using Shared = typename Strip<P, S>::Shared;
    SHARED_DYNAMIC(Shared, shared);
    const Triangle triangle(args.sides.anchors.rows, S::columns, args.splits);
    triangle.each([&](u32 block, u32 first) { find_least<P, S, true>(args, shared, block, blockIdx.x % args.splits, first); });
}

// The nearest negative of an anchor by the difference of the rows, among all that the products cannot tell from it, by a
// warp; NONE without a candidate. Of equal distances the lowest original index wins. row: the anchor. x: its elements.
// T: the type of the caller's rows.
template <class T> DEVICE u32 nearest_negative(const Args& args, u32 row, const Row<T>& x) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32, first = sides.first[row], end = sides.end[row];
    const float norm = a.norm[row];
    u32 negative = NONE, index = NONE;
    float best = 0;
    const auto consider = [&](u32 column) {
        if (column >= b.rows || column - first < end - first) return;
        // Not the root, which would make some distances equal.
        const float d = direct_distance(x, original_row<T>(b, column), b.dim, args.kind == COSINE ? COSINE : SQUARED);
        const u32 its = b.order[column];
        if (d < best || (d == best && its < index) || (negative == NONE && d == d)) {
            best = d;
            negative = column;
            index = its;
        }
    };
    const u32 lanes = 4 * args.columns / args.warp_columns, entries = args.splits * lanes;
    const u64 at = u64(row) * entries;
    float least = __int_as_float(0x7f800000);
    for (u32 k = lane; k < entries; k += 32) least = fminf(least, args.candidate[at + k]);
    // The number of a column of half of the tiles is that of an anchor just so.
    const bool half = a.column_key != nullptr;
    if (half) least = fminf(least, a.columns().least(row));
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) least = fminf(least, __shfl_xor_sync(0xffffffff, least, offset));
    if (norm != norm) return NONE;
    if (!(norm < 0x1p120f && least < 0x1p120f)) {
        // Norms or products have overflowed, or there is no negative.
        if (end - first < b.rows)
            for (u32 column = 0; column < b.rows; ++column) consider(column);
        return negative;
    }
    const float most = least + window(args, norm, least);
    for (u32 base = 0; base < entries; base += 32) {
        const u32 mine = base + lane < entries ? args.candidate_tile[at + base + lane] : NONE;
        const bool counts = base + lane < entries && args.candidate[at + base + lane] <= most;
        for (u32 hits = __ballot_sync(0xffffffff, counts); hits; hits &= hits - 1) {
            const int hit = __ffs(int(hits)) - 1;
            const u32 entry = base + u32(hit), found = __shfl_sync(0xffffffff, mine, hit);
            const bool several = found & SEVERAL;
            // All tiles of the lane, or the one that has its least.
            const u32 split = entry / lanes;
            const u32 first = half ? Triangle(a.rows, args.columns, args.splits).first_tile(row / TERCET_STRIP_ROWS, split) : split;
            for (u32 tile = several ? first : found; tile * args.columns < b.rows; tile += args.splits) {
                for (u32 q = 0; q < args.warp_columns / 4; ++q)
                    consider(tile * args.columns + column_of_lane(args.warp_columns, entry % lanes, q));
                if (!several) break;
            }
        }
    }
    if (half) a.columns().each_row(row, most, args.warp_rows, consider);
    return negative;
}

// log(1 + e^x).
DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }
// The derivative of softplus.
DEVICE float sigmoid(float x) { return x >= 0.f ? 1.f / (1.f + expf(-x)) : expf(x) / (1.f + expf(x)); }

// A warp takes an anchor: its triplet and loss. A block takes at_once anchors at a time, and those of a large class meet
// their positives together. T: the type of the caller's rows.
template <class T> DEVICE void finish(const Args& args) {
    constexpr u32 WARPS = BATCH_THREADS / 32;
    SHARED(u32, farthest, MOST_ANCHORS);
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32;
    const bool bad = sides.bad();
    // Euclidean distances are compared before the root, which would make some of them equal.
    const u32 compared = args.kind == EUCLIDEAN ? SQUARED : args.kind;
    // Loss, valid, active, d_ap, d_an: of each warp, and not in registers, which the tiles need.
    SHARED(double, of_warp, WARPS * TERCET_STATS);
    double* const sums = of_warp + threadIdx.x / 32 * TERCET_STATS;
    if (lane < TERCET_STATS) sums[lane] = 0;
    __syncwarp();  // the zeros are there
    for (u32 base = blockIdx.x * args.at_once; base < a.rows; base += gridDim.x * args.at_once) {
        const u32 count = a.rows - base < args.at_once ? a.rows - base : args.at_once;
        // A lane knows the class of an anchor; all warps know the same.
        const u32 class_first = lane < count ? sides.first[base + lane] : NONE, class_end = lane < count ? sides.end[base + lane] : NONE;
        u32 large = __ballot_sync(0xffffffff, class_end - class_first > LARGE_CLASS), tiled = 0;
        while (large) {
            const u32 from = u32(__ffs(int(large))) - 1;
            const u32 first = __shfl_sync(0xffffffff, class_first, int(from)), end = __shfl_sync(0xffffffff, class_end, int(from));
            // Anchors of one class are neighbours.
            const u32 of_class = large & __ballot_sync(0xffffffff, class_first == first && class_end == end);
            const u32 size = __reduce_add_sync(0xffffffff, of_class >> lane & 1);
            large &= ~of_class;
            if (size < TILED_FROM) continue;
            tiled |= of_class;
            Farthest::find(sides, compared, base + from, size, args.at_once, first, end, farthest + from);
        }
        for (u32 k = threadIdx.x / 32; k < count; k += WARPS) {
            const u32 row = base + k;
            const u32 anchor = a.order[row], first = sides.first[row], end = sides.end[row], own = sides.own_of(row);
            const Row<T> x = original_row<T>(a, row);
            u32 positive = NONE, negative = NONE;
            float d_ap = 0, d_an = 0;
            if (tiled >> k & 1) {
                positive = farthest[k];
                if (positive != NONE) d_ap = direct_distance(x, original_row<T>(b, positive), b.dim, compared);
            } else {
                constexpr int TOGETHER = 4;
                for (u32 p = first; p < end; p += TOGETHER) {
                    Row<T> y[TOGETHER];
                    float d[TOGETHER];
#pragma unroll
                    for (int q = 0; q < TOGETHER; ++q) y[q] = original_row<T>(b, p + q < end ? p + q : p);
                    direct_distances(x, y, b.dim, compared, d);
#pragma unroll
                    for (int q = 0; q < TOGETHER; ++q)
                        if (p + q < end && p + q != own && (positive == NONE || d[q] > d_ap)) {
                            d_ap = d[q];
                            positive = p + q;
                        }
                }
            }
            if (args.kind == EUCLIDEAN) d_ap = sqrtf(d_ap);
            negative = nearest_negative(args, row, x);
            // Every distance is NaN: take any negative, because without one the loss would be 0.
            if (negative == NONE && end - first < b.rows) negative = first > 0 ? 0 : end;
            if (negative != NONE) d_an = direct_distance(x, original_row<T>(b, negative), b.dim, args.kind);
            const bool valid = positive != NONE && negative != NONE;
            const float t = args.soft ? d_ap - d_an : d_ap - d_an + float(args.margin);
            float loss = 0, weight = 0;
            if (valid) {
                loss = args.soft ? softplus(t) : t > 0.f ? t : 0.f;
                weight = args.soft ? sigmoid(t) : t > 0.f ? 1.f : 0.f;
            }
            const bool poisoned = valid ? bad || !is_finite(d_ap) || !is_finite(d_an) : bad && a.norm[row] != a.norm[row];
            if (poisoned) loss = weight = nan_value<float>();
            if (lane == 0) {
                args.choice[2 * anchor] = valid ? positive : NONE;
                args.choice[2 * anchor + 1] = valid ? negative : NONE;
                if (args.positive) args.positive[anchor] = valid ? b.order[positive] : NONE;
                if (args.negative) args.negative[anchor] = valid ? b.order[negative] : NONE;
                args.d_ap[anchor] = d_ap;
                args.d_an[anchor] = d_an;
                args.weight[anchor] = weight;
                if (args.losses) args.losses[anchor] = loss;
                sums[0] += double(loss);
                if (valid) {
                    sums[1] += 1;
                    sums[2] += loss > 0.f ? 1 : 0;
                    sums[3] += double(d_ap);
                    sums[4] += double(d_an);
                }
            }
        }
        __syncthreads();  // all warps have read the farthest positives
    }
    double mine[TERCET_STATS], total[TERCET_STATS];
    for (u32 k = 0; k < TERCET_STATS; ++k) mine[k] = lane == 0 ? sums[k] : 0;
    if (!grid_sums<BATCH_THREADS>(mine, args.partials, sides.anchors.survey->tickets + 2, total)) return;
    const double scale = args.mean ? 1 / (total[1] > 0 ? total[1] : 1) : 1;
    if (args.loss) *args.loss = bad ? nan_value<float>() : float(total[0] * scale);
    const double valid = total[1] > 0 ? total[1] : 1;
    write_stats(args.stats, total[1], total[2], total[3] / valid, total[4] / valid, false, scale);
}

// ---- the gradient ----

// Two choices an anchor.
DEVICE u32 choices_of(const Args& args) { return 2 * args.sides.anchors.rows; }

// Sorts runs of choices by what they chose. No row has been chosen yet.
KERNEL(batch_hard_runs, BATCH_THREADS, const Args args) {
    for (u32 row = blockIdx.x * BATCH_THREADS + threadIdx.x; row < args.sides.others.rows; row += gridDim.x * BATCH_THREADS)
        args.link[row] = args.link_end[row] = 0;
    sort_run(choices_of(args), [&](u32 k) { return args.choice[k]; }, args.sorted, args.sorted_at);
}
// Lists the choices of each row, in their order.
KERNEL(batch_hard_links, BATCH_THREADS, const Args args) {
    rank_runs(choices_of(args), args.sorted, args.sorted_at, [&](u32 k, u32 smaller, u32 equal, u32 before) {
        args.linked[smaller + before] = k;
        const u32 row = args.choice[k];
        if (before > 0 || row == NONE) return;
        args.link[row] = smaller;
        args.link_end[row] = smaller + equal;
    });
}

// Finds the choices of each of the block's rows among all of them, each warp in its share, and lists them in their order in
// `linked`; row k of the block has those at begin[k] .. begin[k + 1].
DEVICE void find_choices(const Args& args, u32* linked, u32* begin) {
    constexpr u32 WARPS = BATCH_THREADS / 32, AT_ONCE = 8;
    static_assert(PULLED_ROWS < 32, "a lane counts for a row");
    SHARED(u32, count, WARPS * PULLED_ROWS);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, first_row = blockIdx.x * PULLED_ROWS, choices = choices_of(args);
    const u32 share = (choices + BATCH_THREADS - 1) / BATCH_THREADS * 32, from = warp * share;
    const u32 to = from + share < choices ? from + share : choices;
    // f(k, row): called by all lanes for each choice k of row `row` of the block.
    const auto each = [&](auto f) {
        for (u32 base = from; base < to; base += 32 * AT_ONCE) {
            u32 row[AT_ONCE];
#pragma unroll
            for (u32 q = 0; q < AT_ONCE; ++q) {
                const u32 k = base + q * 32 + lane;
                row[q] = k < to ? args.choice[k] - first_row : NONE;  // below 0 it wraps around
            }
#pragma unroll
            for (u32 q = 0; q < AT_ONCE; ++q)
                for (u32 hits = __ballot_sync(0xffffffff, row[q] < PULLED_ROWS); hits; hits &= hits - 1) {
                    const int hit = __ffs(int(hits)) - 1;
                    f(base + q * 32 + u32(hit), __shfl_sync(0xffffffff, row[q], hit));
                }
        }
    };
    u32 mine = 0;  // of the row that this lane counts for
    each([&](u32, u32 row) { mine += lane == row; });
    if (lane < PULLED_ROWS) count[lane * WARPS + warp] = mine;
    __syncthreads();  // the counts are there
    // The sums of the counts before each: a lane has two of them.
    static_assert(WARPS * PULLED_ROWS == 64, "two counts a lane");
    const u32 even = count[2 * lane], both = even + count[2 * lane + 1];
    const u32 up_to = sum_up_to_lane(both);
    // Where the next choice of this lane's row goes that this warp finds.
    const u32 place = lane * WARPS + warp, of = place / 2 % 32;
    u32 next = __shfl_sync(0xffffffff, up_to - both, int(of));
    const u32 odd = __shfl_sync(0xffffffff, even, int(of));
    if (place % 2) next += odd;
    if (warp == 0 && lane < PULLED_ROWS) begin[lane] = next;
    if (warp == 0 && lane == 31) begin[PULLED_ROWS] = up_to;
    each([&](u32 k, u32 row) {
        if (lane != row) return;
        linked[next] = k;
        ++next;
    });
    __syncthreads();  // the lists are there
}

// A list of so many choices is that of a hub. It is longer than a piece: no piece lies within more than two of them, and then
// one has its first choice and one its last.
constexpr u32 HUB = TERCET_BATCH_HARD_HUB, HUB_PIECE = TERCET_BATCH_HARD_HUB_PIECE;
static_assert(HUB >= HUB_PIECE, "a hub's list does not end within a piece that it begins in");

// The pull of choice `choice`, at the row that it has chosen or, if `is_own`, at its anchor. T: the type of the caller's rows.
template <class T> DEVICE Pull<T> pull_of(const Args& args, u32 choice, bool is_own) {
    const Batch &a = args.sides.anchors, &b = args.sides.others;
    const u32 anchor = choice / 2;
    const bool negative = choice % 2;
    const float weight = args.weight[anchor] * args.upstream[anchor * args.upstream_stride] * float(args.stats[4]);
    const float d = (negative ? args.d_an : args.d_ap)[anchor];
    const Row<T> y = is_own ? original_row<T>(b, args.choice[choice]) : original_row<T>(a, a.position[anchor]);
    return Pull<T>::of(y, args.kind, d, negative ? -weight : weight);
}

// What pulls at a row of the side `which`: the choices of it, and its own two, at the place of its index; of a long list
// its own come first, and the choices of a hub have been summed up. T: the type of the caller's rows.
template <class T> struct PullsAt {
    const Args& args;
    const u32* linked;  // the choices of the row
    u64 count;
    u32 own, at;        // the first of its own choices, and how many of the list come before them
    u32 owns;           // how many of its own choices there are, 0 or 2
    u32 begin, pieces;  // where the choices begin among all, and how many pieces have sums of them

    DEVICE PullsAt(const Args& args, u32 row, const u32* linked, u32 listed)
        : args(args), linked(linked), own(NONE), at(0), owns(0), begin(0), pieces(0) {
        if (args.which == 0) {
            own = 2 * args.sides.anchors.order[row];
            owns = args.choice[own] != NONE ? 2 : 0;
        }
        if (args.hub_sums && listed >= HUB) {
            begin = u32(linked - args.linked);
            pieces = (begin + listed - 1) / HUB_PIECE - begin / HUB_PIECE + 1;
            listed = 0;
        }
        count = u64(listed) + owns;
        if (!owns || count > LONG_LIST) return;
        for (u32 base = 0; base < listed; base += 32) {
            const u32 k = base + threadIdx.x % 32;
            at += __reduce_add_sync(0xffffffff, k < listed && linked[k] < own);
        }
    }
    DEVICE Pull<T> operator()(u64 k) const {
        const bool is_own = k >= at && k - at < owns;
        return pull_of<T>(args, is_own ? own + u32(k - at) : linked[k < at ? k : k - owns], is_own);
    }
    DEVICE const float* piece(u32 k) const {
        const u32 at_piece = begin / HUB_PIECE + k;
        return args.hub_sums + (u64(at_piece) * 2 + (begin > at_piece * HUB_PIECE)) * args.sides.others.dim;
    }
};

// A block sums up what pulls at the hub of the first choice, and at that of the last, of its piece of the ranked choices.
// T: the type of the caller's rows.
template <class T> DEVICE void hubs(const Args& args) {
    constexpr u32 COLUMNS = PulledSums<T>::COLUMNS;
    SHARED(float, part, PULLED_ROWS * COLUMNS);
    const Batch& b = args.sides.others;
    const u32 from = blockIdx.x * HUB_PIECE, choices = choices_of(args), end = from + HUB_PIECE < choices ? from + HUB_PIECE : choices;
    for (u32 which = 0; which < 2; ++which) {
        const u32 row = args.choice[args.linked[which ? end - 1 : from]];
        if (row == NONE) continue;
        const u32 first = args.link[row], last = args.link_end[row];
        if (last - first < HUB || (which && first <= from)) continue;
        const Row<T> x = original_row<T>(b, row);
#pragma unroll 1
        for (u32 column = 0; column < b.dim; column += COLUMNS) {
            PulledSums<T> sums(column, b.dim);
            add_by_warps(sums, x, args.kind != COSINE, first > from ? first : from, last < end ? last : end, part,
                         [&](u64 k) { return pull_of<T>(args, args.linked[k], false); });
            if (threadIdx.x < 32) sums.each([&](u32, u32 c, float g) { args.hub_sums[(u64(blockIdx.x) * 2 + which) * b.dim + c] = g; });
        }
    }
}

// A warp writes the gradient of a row of one side. T: the type of the caller's rows.
template <class T> DEVICE void backward(const Args& args) {
    const Sides& sides = args.sides;
    // Whether anchors may have chosen these rows.
    const bool as_other = args.which == 1 || sides.itself;
    SHARED(u32, found, 2 * TERCET_BATCH_HARD_SEARCHED);
    SHARED(u32, begin, PULLED_ROWS + 1);
    const bool lost = sides.bad();
    if (as_other && !args.linked && !lost) find_choices(args, found, begin);
    write_all_pulled<T>(args.which ? sides.others : sides.anchors, args.kind, lost, args.grad, [&](u32 row) {
        const u32* from = nullptr;
        u32 count = 0;
        if (as_other && args.linked) {
            from = args.linked + args.link[row];
            count = args.link_end[row] - args.link[row];
        } else if (as_other) {
            from = found + begin[row % PULLED_ROWS];
            count = begin[row % PULLED_ROWS + 1] - begin[row % PULLED_ROWS];
        }
        return PullsAt<T>(args, row, from, count);
    });
}

// The blocks of a shape that a multiprocessor holds.
constexpr int BLOCKS[] = {TERCET_STRIP_BLOCKS};
#define NEGATIVES(mode, P, shape, resident, SHAPE, blocks)                                                                \
    IF_TAKEN(TERCET_STRIP_##mode##_##shape,                                                                               \
    KERNEL_OF(blocks, batch_hard_negatives_##mode##_##shape, (StripShape<resident, SHAPE>::threads), const Args args) {   \
        negatives<P, StripShape<resident, SHAPE>>(args);                                                                  \
    }                                                                                                                     \
    KERNEL_OF(blocks, batch_hard_triangle_##mode##_##shape, (StripShape<resident, SHAPE>::threads), const Args args) {    \
        triangle<P, StripShape<resident, SHAPE>>(args);                                                                   \
    })
NEGATIVES(highest, Split, wide, true, TERCET_STRIP_WIDE_SPLIT, BLOCKS[0])
NEGATIVES(highest, Split, wide_long, false, TERCET_STRIP_WIDE_LONG, BLOCKS[0])
NEGATIVES(highest, Split, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])
NEGATIVES(highest, Split, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])
NEGATIVES(half, Half, wide, true, TERCET_STRIP_WIDE_SINGLE, BLOCKS[0])
NEGATIVES(half, Half, wide_long, false, TERCET_STRIP_WIDE_LONG, BLOCKS[0])
NEGATIVES(half, Half, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])
NEGATIVES(half, Half, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])
#define OF_TYPE(dtype, T)                                                              \
    KERNEL_OF(3, batch_hard_finish_##dtype, BATCH_THREADS, const Args args) { finish<T>(args); } \
    KERNEL(batch_hard_hubs_##dtype, BATCH_THREADS, const Args args) { hubs<T>(args); }           \
    KERNEL(batch_hard_backward_##dtype, BATCH_THREADS, const Args args) { backward<T>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
