// batch_hard:  per anchor a, the farthest positive p and the nearest negative n;  relu(d_ap - d_an + m), or softplus(d_ap - d_an).
//
// negatives: the nearest negative by Gram tiles, a running minimum per row in registers; each block takes a row of tiles
//            and every `splits`-th column.
// finish:    per anchor a warp finds the farthest positive by its elements, O(P D), merges the splits, and takes both
//            distances from the elements: the mined pairs carry no error of the Gram matrix.
// runs, links: for the gradient of many rows, which anchors have chosen each of them: the choices ranked by what they chose.
// backward:  row i gathers the gradients of its triplets, as anchor, positive or negative, in the order of the anchors. Of few
//            rows a block looks at all choices for its own ones, which takes no other launch.
// Of equal distances the lowest original index wins: positives come in that order, and negatives compare it.
#include "batch.cuh"
#include "farthest.cuh"
#include "pulls.cuh"
#include "ranks.cuh"

// The same layout as `Args` in src/batch_hard/cuda.rs. Arrays per anchor are by original index. Choice 2 i is that of anchor
// i's positive, and choice 2 i + 1 that of its negative.
struct Args {
    Sides sides;
    float* candidate;     // [splits, padded]: the distance of the nearest negative in a split
    u32* candidate_row;   // [splits, padded]: its row, in class order, or NONE
    u32* positive;        // per anchor, by original index; NONE without a triplet; null: not wanted
    u32* negative;
    u32* choice;          // [2 anchors]: the chosen one of the other rows, in class order; NONE without a triplet
    float* d_ap;          // per anchor
    float* d_an;
    float* weight;        // per anchor: d loss / d (d_ap - d_an)
    float* losses;        // per anchor; null: not wanted
    float* loss;          // null: not wanted
    double* stats;        // valid, active, sums of d_ap and d_an over the valid, what the sum is multiplied by
    double* partials;     // TERCET_STATS a block
    const float* upstream;  // [1] (stride 0) or per anchor (stride 1)
    i64 upstream_stride;
    void* grad;           // [rows, dim] of type T, of the side `which`, by original index
    u32* sorted;          // [2 anchors]: the chosen rows in sorted runs, and which choices these are
    u32* sorted_at;
    u32* linked;          // [2 anchors]: the choices, by what they chose; null: `backward` looks for them
    u32* link;            // [others]: where in `linked` those of a row begin, and
    u32* link_end;        // where they end
    double margin;
    u32 splits, kind, soft, mean;
    u32 which;            // whose gradient: the anchors' or, 1, the reference set's
    u32 at_once;          // anchors that a block of `finish` takes at a time: 8, 16 or 32
};

// A block finds the nearest negative, in every `splits`-th column tile, of each row of a row tile. P: the precision.
template <class P> DEVICE void negatives(const Args& args) {
    using Stream = TileStream<P>;
    SHARED_DYNAMIC(typename Stream::Buffers, buffers);
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 tiles = b.padded / TILE, row_tile = blockIdx.x / args.splits, split = blockIdx.x % args.splits;
    using Tile = GramTile<P>;
    float best[Tile::ROWS];
    u32 best_row[Tile::ROWS], best_index[Tile::ROWS], first[Tile::ROWS], size[Tile::ROWS];
#pragma unroll
    for (int s = 0; s < Tile::ROWS; ++s) {
        const u32 row = row_tile * TILE + Tile::row_of(s);
        best[s] = __uint_as_float(0x7f800000);
        best_row[s] = best_index[s] = NONE;
        first[s] = row < a.rows ? sides.first[row] : 0;
        size[s] = row < a.rows ? sides.end[row] - first[s] : 0;
    }
    const RowLengths<P> lengths(a.lengths(), row_tile * TILE);
    Stream stream(buffers, a.operand(), b.operand(), b.lengths(), row_tile * TILE, split, args.splits, tiles);
    for (u32 column_tile = split; column_tile < tiles; column_tile += args.splits) {
        Tile tile;
        const u32 base[2] = {row_tile * TILE, column_tile * TILE};
        stream.take(tile);
        const auto consider = [&](int s, u32 column, float d) {
            if (!(d <= best[s])) return;  // NaN is no candidate
            const u32 index = b.order[column];
            if (d < best[s] || index < best_index[s]) {
                best[s] = d;
                best_row[s] = column;
                best_index[s] = index;
            }
        };
        tile.each(
            [&](int s, int, int c, float product) {
                const u32 column = base[1] + c;
                if (column - first[s] < size[s]) return false;
                bool near;
                const float d = squared_distance(lengths.norm[s], lengths.scale[s], stream.norm(c), stream.scale(c), product, near);
                if (!near) consider(s, column, d);
                return near;
            },
            [&](int slot, int r, int c) {
                const float d = near_squared_distance(a, base[0] + r, b, base[1] + c);
#pragma unroll
                for (int s = 0; s < Tile::ROWS; ++s)
                    if (s == slot) consider(s, base[1] + c, d);
            });
    }
    // The products of a row are in four lanes of each of two warps.
    SHARED(float, other, TILE);
    SHARED(u32, other_row, TILE);
    SHARED(u32, other_index, TILE);
    const auto merge = [&](int s, float d, u32 row, u32 index) {
        if (d < best[s] || (d == best[s] && index < best_index[s])) {
            best[s] = d;
            best_row[s] = row;
            best_index[s] = index;
        }
    };
#pragma unroll
    for (int s = 0; s < Tile::ROWS; ++s)
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2) {
            const float d = __shfl_xor_sync(0xffffffff, best[s], offset);
            const u32 row = __shfl_xor_sync(0xffffffff, best_row[s], offset);
            const u32 index = __shfl_xor_sync(0xffffffff, best_index[s], offset);
            merge(s, d, row, index);
        }
    const bool right = threadIdx.x / 32 % 2, writes = threadIdx.x % 4 == 0;
#pragma unroll
    for (int s = 0; s < Tile::ROWS; ++s)
        if (right && writes) {
            other[Tile::row_of(s)] = best[s];
            other_row[Tile::row_of(s)] = best_row[s];
            other_index[Tile::row_of(s)] = best_index[s];
        }
    __syncthreads();  // the right warps' minima are there
#pragma unroll
    for (int s = 0; s < Tile::ROWS; ++s)
        if (!right && writes) {
            const int r = Tile::row_of(s);
            merge(s, other[r], other_row[r], other_index[r]);
            const i64 at = i64(split) * a.padded + row_tile * TILE + r;
            args.candidate[at] = best[s];
            args.candidate_row[at] = best_row[s];
        }
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
            float best = 0;
            u32 index = NONE;
            for (u32 s = 0; s < args.splits; ++s) {
                const i64 at = i64(s) * a.padded + row;
                const u32 candidate = args.candidate_row[at];
                if (candidate == NONE) continue;
                const float d = args.candidate[at];
                if (negative == NONE || d < best || (d == best && b.order[candidate] < index)) {
                    best = d;
                    negative = candidate;
                    index = b.order[candidate];
                }
            }
            // Every distance is NaN: take any negative, because without one the loss would be 0.
            if (negative == NONE && end - first < b.rows) {
                negative = first > 0 ? 0 : end;
                index = b.order[negative];
            }
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
                if (args.negative) args.negative[anchor] = valid ? index : NONE;
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
    for (int k = 0; k < 4; ++k) args.stats[k] = total[k + 1];
    args.stats[4] = scale;
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
    u32 up_to = both;
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const u32 other = __shfl_up_sync(0xffffffff, up_to, offset);
        if (lane >= u32(offset)) up_to += other;
    }
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

// What pulls at a row of the side `which`: the choices of it, and its own two, at the place of its index; of a long list
// its own come first. T: the type of the caller's rows.
template <class T> struct PullsAt {
    const Args& args;
    const u32* linked;  // the choices of the row
    u64 count;
    u32 own, at;        // the first of its own choices, and how many of the list come before them
    u32 owns;           // how many of its own choices there are, 0 or 2
    float scale;

    DEVICE PullsAt(const Args& args, u32 row, const u32* linked, u32 listed)
        : args(args), linked(linked), own(NONE), at(0), owns(0), scale(float(args.stats[4])) {
        if (args.which == 0) {
            own = 2 * args.sides.anchors.order[row];
            owns = args.choice[own] != NONE ? 2 : 0;
        }
        count = u64(listed) + owns;
        if (!owns || count > LONG_LIST) return;
        for (u32 base = 0; base < listed; base += 32) {
            const u32 k = base + threadIdx.x % 32;
            at += __reduce_add_sync(0xffffffff, k < listed && linked[k] < own);
        }
    }
    DEVICE Pull<T> operator()(u64 k) const {
        const Batch &a = args.sides.anchors, &b = args.sides.others;
        const bool is_own = k >= at && k - at < owns;
        const u32 choice = is_own ? own + u32(k - at) : linked[k < at ? k : k - owns], anchor = choice / 2;
        const bool negative = choice % 2;
        const float weight = args.weight[anchor] * args.upstream[anchor * args.upstream_stride] * scale;
        const float d = (negative ? args.d_an : args.d_ap)[anchor];
        const Row<T> y = is_own ? original_row<T>(b, args.choice[choice]) : original_row<T>(a, a.position[anchor]);
        return Pull<T>::of(y, args.kind, d, negative ? -weight : weight);
    }
};

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

KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_highest, TILE_THREADS, const Args args) { negatives<Split>(args); }
KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_high, TILE_THREADS, const Args args) { negatives<Tf32>(args); }
KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_f16, TILE_THREADS, const Args args) { negatives<Half<f16>>(args); }
KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_bf16, TILE_THREADS, const Args args) { negatives<Half<bf16>>(args); }
#define OF_TYPE(dtype, T)                                                              \
    KERNEL_OF(3, batch_hard_finish_##dtype, BATCH_THREADS, const Args args) { finish<T>(args); } \
    KERNEL(batch_hard_backward_##dtype, BATCH_THREADS, const Args args) { backward<T>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
