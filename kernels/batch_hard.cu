// batch_hard:  per anchor a, the farthest positive p and the nearest negative n;  relu(d_ap - d_an + m), or softplus(d_ap - d_an).
//
// negatives: products of tiles; each lane of a row keeps the least, and which tile it is in. Each block takes a block of
//            rows and every `splits`-th tile of columns.
// finish:    per anchor a warp finds the farthest positive by its elements, O(P D), and the nearest negative by those of the
//            few rows that the products cannot tell from it: the mined pairs carry no error of the products.
// backward:  row i gathers the gradients of its triplets, as anchor, positive or negative, in the order of the anchors.
// Of equal distances the lowest original index wins: positives come in that order, and negatives compare it.
#include "batch.cuh"
#include "strip.cuh"

// The same layout as `Args` in src/batch_hard/cuda.rs. Arrays per anchor are by original index.
struct Args {
    Sides sides;
    float* candidate;     // [anchors, splits, lanes]: the least number of a lane of the strip
    u32* candidate_tile;  // [anchors, splits, lanes]: the tile of columns that has it, or NONE; and SEVERAL
    u32* positive;        // per anchor; NONE without a triplet
    u32* negative;
    float* d_ap;          // per anchor
    float* d_an;
    float* weight;        // per anchor: d loss / d (d_ap - d_an)
    float* losses;        // per anchor; null: not wanted
    float* loss;          // null: not wanted
    double* stats;        // valid, active, sums of d_ap and d_an over the valid, what the sum is multiplied by
    double* partials;     // TERCET_STATS a block
    u32* ticket;          // 0 at launch
    const float* upstream;  // [1] (stride 0) or per anchor (stride 1)
    i64 upstream_stride;
    void* grad;           // [rows, dim] of type T, of the side `which`, by original index
    float* work;          // [rows, dim]: for 16-bit gradients; else `grad` itself
    double margin;
    u32 splits, kind, soft, mean;
    u32 which;            // whose gradient: the anchors' or, 1, the reference set's
    u32 at_once;          // rows that a warp gathers the gradients of
    u32 columns, warp_columns;  // of a tile, and of a warp of it
    float error;          // of a product, over the sum of both norms; 0: of lower precision
    u32 padding;          // to the end of 8 bytes
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
    return 2.f * args.error * (3.f * norm + 2.f * fmaxf(norm + least, 0.f)) + 0x1p-120f;
}

// A block finds, for each row of a block of rows, the least of `norm_j - 2 x.y_j` over the rows j of other classes: the
// squared distance less what is the same for all j. Each lane of a row keeps its own least, and the tile that it is in;
// `finish` looks at the lane's columns of that tile. P: the precision. S: the shape.
template <class P, class S> DEVICE void negatives(const Args& args) {
    using Strip = ::Strip<P, S>;
    SHARED_DYNAMIC(typename Strip::Shared, shared);
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 block = blockIdx.x / args.splits, split = blockIdx.x % args.splits, base = block * S::rows;
    const u32 tiles = (b.rows + S::columns - 1) / S::columns, last = base + S::rows < a.rows ? base + S::rows - 1 : a.rows - 1;
    // Rows lie in class order: those of the rows' own classes follow each other.
    const u32 own_begin = sides.first[base], own_end = sides.end[last];
    // Long rows leave no registers for the scales: these are read again for each tile.
    const auto scale_of = [&](int r) {
        const u32 row = base + Strip::row_of(r);
        return row < a.rows ? a.scale[row] : 1.f;
    };
    float best[Strip::ROWS], second[Strip::ROWS], scale[Strip::ROWS];
    u32 best_tile[Strip::ROWS];
#pragma unroll
    for (int r = 0; r < Strip::ROWS; ++r) {
        best[r] = second[r] = __int_as_float(0x7f800000);
        best_tile[r] = NONE;
        scale[r] = S::resident ? scale_of(r) : 0.f;
    }
    Strip strip(shared, a.operand(), b.operand(), b.terms, block, split, args.splits, tiles);
#pragma unroll 1
    for (u32 tile = split; tile < tiles; tile += args.splits) {
        strip.take();
        if (tile * S::columns < own_end && (tile + 1) * S::columns > own_begin) {
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
        for (int r = 0; r < Strip::ROWS; ++r) {
            least[r] = __int_as_float(0x7f800000);
            if constexpr (!S::resident) scale[r] = scale_of(r);
        }
#pragma unroll
        for (int j = 0; j < Strip::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> terms = strip.terms_of(j);
#pragma unroll
            for (int r = 0; r < Strip::ROWS; ++r)
#pragma unroll
                for (int e = 0; e < 2; ++e)
                    least[r] = fminf(least[r], fmaf(strip.product(r, 2 * j + e) * terms.v[2 * e + 1], scale[r], terms.v[2 * e]));
        }
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) {
            second[r] = fminf(second[r], fmaxf(best[r], least[r]));
            best_tile[r] = least[r] < best[r] ? tile : best_tile[r];
            best[r] = fminf(best[r], least[r]);
        }
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
        float d;
        // |u - v|^2 is 2 (1 - u.v) for unit vectors alone, with a smaller error, and rows below MIN_NORM do not become such.
        if (args.kind == COSINE && (a.inverse[row] < 0.f || b.inverse[column] < 0.f)) d = 2.f * direct_distance(x, original_row<T>(b, column), b.dim, COSINE);
        else d = direct_distance(x, original_row<T>(b, column), b.dim, SQUARED);
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
            for (u32 tile = several ? entry / lanes : found; tile * args.columns < b.rows; tile += args.splits) {
                for (u32 q = 0; q < args.warp_columns / 4; ++q)
                    consider(tile * args.columns + column_of_lane(args.warp_columns, entry % lanes, q));
                if (!several) break;
            }
        }
    }
    return negative;
}

// log(1 + e^x).
DEVICE float softplus(float x) { return fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))); }
// The derivative of softplus.
DEVICE float sigmoid(float x) { return x >= 0.f ? 1.f / (1.f + expf(-x)) : expf(x) / (1.f + expf(x)); }

// A warp takes an anchor: its triplet and loss. T: the type of the caller's rows.
template <class T> DEVICE void finish(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32;
    const bool bad = sides.bad();
    double sums[TERCET_STATS] = {0, 0, 0, 0, 0};  // loss, valid, active, d_ap, d_an
    for (u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; row < a.rows; row += gridDim.x * (BATCH_THREADS / 32)) {
        const u32 anchor = a.order[row], first = sides.first[row], end = sides.end[row], own = sides.own_of(row);
        const Row<T> x = original_row<T>(a, row);
        u32 positive = NONE, negative = NONE;
        float d_ap = 0, d_an = 0;
        // Euclidean distances are compared before the root, which would make some of them equal.
        const u32 compared = args.kind == EUCLIDEAN ? SQUARED : args.kind;
        for (u32 p = first; p < end; ++p) {
            if (p == own) continue;
            const float d = direct_distance(x, original_row<T>(b, p), b.dim, compared);
            if (positive == NONE || d > d_ap) {
                d_ap = d;
                positive = p;
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
            args.positive[anchor] = valid ? b.order[positive] : NONE;
            args.negative[anchor] = valid ? b.order[negative] : NONE;
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
    double total[TERCET_STATS];
    if (!grid_sums<BATCH_THREADS>(sums, args.partials, args.ticket, total)) return;
    const double scale = args.mean ? 1 / (total[1] > 0 ? total[1] : 1) : 1;
    if (args.loss) *args.loss = bad ? nan_value<float>() : float(total[0] * scale);
    for (int k = 0; k < 4; ++k) args.stats[k] = total[k + 1];
    args.stats[4] = scale;
}

constexpr u32 AT_ONCE = TERCET_BATCH_HARD_AT_ONCE;  // the largest at_once

// A warp writes the gradients of at_once rows of one side. T: the type of the caller's rows.
template <class T> DEVICE void backward(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &mine = args.which ? sides.others : sides.anchors;
    // Whether these rows are anchors, and whether anchors may have chosen them.
    const bool as_anchor = args.which == 0, as_other = args.which == 1 || sides.itself;
    // A warp takes several rows, so that what the anchors have chosen is not read again for each.
    const u32 lane = threadIdx.x % 32, warp = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32;
    const u32 from = warp * args.at_once, count = from + args.at_once < mine.rows ? args.at_once : from < mine.rows ? mine.rows - from : 0;
    if (count == 0) return;
    const bool bad = sides.bad();
    u32 indices[AT_ONCE];
#pragma unroll
    for (u32 k = 0; k < AT_ONCE; ++k) {
        indices[k] = k < count ? mine.order[from + k] : NONE;
        if (k < count)
            for (u32 c = lane; c < mine.dim; c += 32) args.work[i64(indices[k]) * mine.dim + c] = 0.f;
    }
    // A row by original index, with the factor that normalises it.
    const auto row_of = [&](const Batch& b, u32 index) {
        const T* x = static_cast<const T*>(b.x) + index * b.stride;
        if (!b.normalize) return Row<T>{x, 1.f};
        float squares = 0;
        for (u32 c = lane; c < b.dim; c += 32) squares += widen(x[c]) * widen(x[c]);
        const float norm = sqrtf(group_sum<32>(squares));
        return Row<T>{x, 1.f / (norm < float(TERCET_MIN_NORM) ? float(TERCET_MIN_NORM) : norm)};
    };
    // Adds weight * d distance(x, y) / dx to the gradient of row i, with y row `index` of b.
    const auto add = [&](u32 i, const Row<T>& x, const Batch& b, u32 index, float distance, float weight) {
        float* g = args.work + i64(i) * mine.dim;
        const Row<T> y = row_of(b, index);
        const float slope = args.kind == SQUARED ? 2.f * weight : distance > 0.f ? weight / distance : 0.f;
        for (u32 c = lane; c < b.dim; c += 32) g[c] += args.kind == COSINE ? -weight * y(c) : slope * (x(c) - y(c));
    };
    const float scale = float(args.stats[4]);
    // Adds to the gradient of row i that of the anchor's triplet, which row i is part of.
    const auto gather = [&](u32 i, const Row<T>& x, u32 anchor) {
        const float weight = args.weight[anchor] * args.upstream[anchor * args.upstream_stride] * scale;
        if (weight == 0.f) return;
        const u32 p = args.positive[anchor], n = args.negative[anchor];
        if (as_anchor && anchor == i) {
            add(i, x, sides.others, p, args.d_ap[anchor], weight);
            add(i, x, sides.others, n, args.d_an[anchor], -weight);
        } else {
            add(i, x, sides.anchors, anchor, p == i ? args.d_ap[anchor] : args.d_an[anchor], p == i ? weight : -weight);
        }
    };
    if (!as_other) {
        // With a reference set an anchor is part of its own triplet alone.
        for (u32 k = 0; k < count; ++k) {
            const u32 i = mine.order[from + k];
            if (args.positive[i] != NONE) gather(i, original_row<T>(mine, from + k), i);
        }
    } else {
        // The choices of the next 32 anchors are read while those of these are looked at.
        const auto chosen = [&](const u32* of, u32 anchor) { return anchor < sides.anchors.rows ? of[anchor] : NONE; };
        u32 next_p = chosen(args.positive, lane), next_n = chosen(args.negative, lane);
        for (u32 base = 0; base < sides.anchors.rows; base += 32) {
            const u32 anchor = base + lane, p = next_p, n = next_n, a = as_anchor && p != NONE ? anchor : NONE;
            next_p = chosen(args.positive, anchor + 32);
            next_n = chosen(args.negative, anchor + 32);
#pragma unroll
            for (u32 k = 0; k < AT_ONCE; ++k) {
                const u32 i = indices[k];
                if (k >= count) break;
                for (u32 hits = __ballot_sync(0xffffffff, p == i || n == i || a == i); hits; hits &= hits - 1)
                    gather(i, original_row<T>(mine, from + k), base + u32(__ffs(int(hits))) - 1);
            }
        }
    }
    for (u32 k = 0; k < count; ++k)
        write_gradient<T>(mine, from + k, args.work + i64(mine.order[from + k]) * mine.dim, 1.f, bad, args.grad);
}

// The blocks of a shape that a multiprocessor holds.
constexpr int BLOCKS[] = {TERCET_STRIP_BLOCKS};
#define NEGATIVES(mode, P, shape, resident, SHAPE, blocks)                                                                \
    KERNEL_OF(blocks, batch_hard_negatives_##mode##_##shape, (StripShape<resident, SHAPE>::threads), const Args args) {   \
        negatives<P, StripShape<resident, SHAPE>>(args);                                                                  \
    }
NEGATIVES(highest, Split, wide, true, TERCET_STRIP_WIDE_SPLIT, BLOCKS[0])
NEGATIVES(highest, Split, wide_long, false, TERCET_STRIP_WIDE_LONG, BLOCKS[0])
NEGATIVES(highest, Split, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])
NEGATIVES(highest, Split, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])
NEGATIVES(half, Half, wide, true, TERCET_STRIP_WIDE_SINGLE, BLOCKS[0])
NEGATIVES(half, Half, wide_long, false, TERCET_STRIP_WIDE_LONG, BLOCKS[0])
NEGATIVES(half, Half, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])
NEGATIVES(half, Half, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])
#define OF_TYPE(dtype, T)                                                              \
    KERNEL(batch_hard_finish_##dtype, BATCH_THREADS, const Args args) { finish<T>(args); }     \
    KERNEL(batch_hard_backward_##dtype, BATCH_THREADS, const Args args) { backward<T>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
