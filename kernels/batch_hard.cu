// batch_hard:  per anchor a, the farthest positive p and the nearest negative n;  relu(d_ap - d_an + m), or softplus(d_ap - d_an).
//
// negatives: the nearest negative by Gram tiles, a running minimum per row in registers; each block takes a row of tiles
//            and every `splits`-th column.
// finish:    per anchor a warp finds the farthest positive by its elements, O(P D), merges the splits, and takes both
//            distances from the elements: the mined pairs carry no error of the Gram matrix.
// backward:  row i gathers the gradients of its triplets, as anchor, positive or negative, in the order of the anchors.
// Of equal distances the lowest original index wins: positives come in that order, and negatives compare it.
#include "batch.cuh"

// The same layout as `Args` in src/batch_hard/cuda.rs. Arrays per anchor are by original index.
struct Args {
    Sides sides;
    float* candidate;     // [splits, padded]: the distance of the nearest negative in a split
    u32* candidate_row;   // [splits, padded]: its row, in class order, or NONE
    u32* positive;        // per anchor; NONE without a triplet
    u32* negative;
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
    float* work;          // [rows, dim]: for 16-bit gradients; else `grad` itself
    double margin;
    u32 splits, kind, soft, mean;
    u32 which;            // whose gradient: the anchors' or, 1, the reference set's
    u32 at_once;          // rows that a warp gathers the gradients of
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
            args.positive[anchor] = valid ? b.order[positive] : NONE;
            args.negative[anchor] = valid ? index : NONE;
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
    if (!grid_sums<BATCH_THREADS>(sums, args.partials, sides.anchors.survey->tickets + 2, total)) return;
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

KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_highest, TILE_THREADS, const Args args) { negatives<Split>(args); }
KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_high, TILE_THREADS, const Args args) { negatives<Tf32>(args); }
KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_f16, TILE_THREADS, const Args args) { negatives<Half<f16>>(args); }
KERNEL_OF(TERCET_BATCH_HARD_RESIDENT, batch_hard_negatives_bf16, TILE_THREADS, const Args args) { negatives<Half<bf16>>(args); }
#define OF_TYPE(dtype, T)                                                              \
    KERNEL(batch_hard_finish_##dtype, BATCH_THREADS, const Args args) { finish<T>(args); }     \
    KERNEL(batch_hard_backward_##dtype, BATCH_THREADS, const Args args) { backward<T>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
