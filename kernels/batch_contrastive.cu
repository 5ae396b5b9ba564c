// batch_contrastive:  over pairs of an anchor a and another row j:  d^2/2 if of one class,  max(m - d, 0)^2/2 if not.
// With a margin m' of positives  max(d - m', 0)^2/2  if of one class; linear:  max(d - m', 0)  and  max(m - d, 0).
//
// Weights depend on d alone, so the loss and the gradient are a sweep over Gram tiles each. The hardest pairs of two
// classes are selected without a list of pairs, by radix select over the bits of the distances: a sweep counts how many
// pairs have which digit, and `pick` takes the digit of the last pair that is wanted, three times. Of the pairs at
// exactly that distance those of the lowest anchor come first, and of these those with the lowest row: two more sweeps,
// unless all of them are wanted. Passes with nothing left to find return at once.
//
// count:    how many pairs there are and how many are wanted.
// sweep:    loss and gradient of all pairs of two classes in one pass (sweep.cuh): the upstream gradient is one number, and
//           comes last.
// left:     the same for pairs that are near each other, which a sweep leaves, by differences.
// passes:   over tiles, where pairs are selected, or each anchor has an upstream of its own, or pairs are linear; each pair's tile is the same way
//           round, so that its distance has the same bits in all of them.
// pick:     after a pass, what the next one needs to know.
// finish:   the positives of each anchor, from the elements; the loss.
// backward: what a row was pushed by, its positives, normalisation, times upstream / count, in the caller's type.
#include "ordinary.cuh"
#include "push.cuh"

constexpr u32 DIGITS = TERCET_DIGITS;
static_assert(DIGITS == 1 << 11, "three digits have 11, 11 and 10 bits");
enum Phase : u32 { DIGIT_0, DIGIT_1, DIGIT_2, TIED_ANCHORS, TIED_ROWS, SUMS, PUSH };
static_assert(SUMS == TERCET_PHASE_SUMS && PUSH == TERCET_PHASE_PUSH, "src/constants.rs");

// Which pairs of two classes are selected: those below (key, anchor, row) in lexicographic order. Anchors and rows are by
// original index, in a batch by itself the lower one first. The same layout as `Choice` in src/batch_contrastive/cuda.rs.
struct Choice {
    u64 left;   // how many pairs are wanted of those that agree with `key` in all digits so far
    u32 key;
    u32 anchor;
    u32 row;
    u32 done;   // whether nothing is left to find
    float share;  // what these pairs weigh more than pairs of one class: 1, but where each kind has a mean of its own
    u32 padding;
};

// The same layout as `Args` in src/batch_contrastive/cuda.rs.
struct Args {
    Sides sides;
    Choice* choice;
    u64* histogram;     // [DIGITS]: how many pairs have each digit; `count` writes zeros, here and in the next two
    u32* tied_anchors;  // [anchors] by original index: how many pairs at the last distance each has
    u32* tied_rows;     // [others] by original index: whether the last anchor has such a pair with it
    double* sums;       // [splits, padded, TERCET_SUMS_OF_ROW] per anchor: sum max(m - d, 0)^2, linear sum max(m - d, 0); how many
                        // are above 0, sum d; of a sweep [halves + splits, padded, ..], its own first
    Swept sweep;        // of one side's rows. Of a pass, `pushed` is [splits, padded, dim]: sum_j w_ij (y_i - y_j), for
                        // cosine -sum_j w_ij y_j
    TileOf* tiles[2];   // of the anchors, and of the others
    double* partials;   // TERCET_TOTALS a block
    float* losses;      // [anchors] by original index; null: not wanted
    float* loss;        // null: not wanted
    double* stats;      // what write_stats writes
    const float* upstream;  // [1] (stride 0) or [anchors] by original index (stride 1)
    i64 upstream_stride;
    void* grad;         // [rows, dim] of type T, of the sweep's rows, by original index
    double margin, pos_margin;
    u32 kind, hardest, mean, phase;
    u32 swept;          // whether all pairs are taken by a sweep, and so the loss is; and its gradient
    u32 grad_is_swept;
    u32 linear;         // whether a pair costs its gap, and not half of the gap's square
    u32 over_active;    // whether a mean is over the pairs with a loss above 0 alone
    u32 apart;          // whether pairs of one class and of two have a mean each
    u32 padding;
};

// ---- which pairs are selected ----

// Integers in the order of the distances, which may be negative.
DEVICE u32 key_of(float d) {
    const u32 bits = __float_as_uint(d + 0.f);  // no -0
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// A pair by original indices, in a batch by itself the lower one first.
struct Named { u32 anchor, row; };
DEVICE Named named(const Sides& sides, u32 anchor, u32 other) {
    const u32 a = sides.anchors.order[anchor], j = sides.others.order[other];
    return sides.itself && j < a ? Named{j, a} : Named{a, j};
}

// The lowest bit of a phase's digit.
DEVICE u32 shift_of(u32 phase) { return phase == DIGIT_0 ? 21 : phase == DIGIT_1 ? 10 : 0; }
// Whether a key agrees with the chosen one in the digits before that of a phase.
DEVICE bool agrees(u32 key, u32 chosen, u32 phase) { return phase == DIGIT_0 || key >> shift_of(phase - 1) == chosen >> shift_of(phase - 1); }

// A row's scale may be smaller than the batch's largest by this power of two: so weights times scales are f16 in two planes.
constexpr u32 LEAST_SHARE = 16;

// Counts the pairs, as whole numbers in f64, which are exact to 2^53; and says of each row what a sweep needs to know.
KERNEL(batch_contrastive_count, BATCH_THREADS, const Args args) {
    const Sides& sides = args.sides;
    const u32 first = blockIdx.x * BATCH_THREADS + threadIdx.x, step = gridDim.x * BATCH_THREADS;
    for (int side = 0; args.swept && side < (sides.itself ? 1 : 2); ++side) {
        const Batch& b = side ? sides.others : sides.anchors;
        const u32 largest = b.survey->largest_scale();
        for (u32 i = first; i < b.rows; i += step) {
            const bool odd = b.norm[i] > LARGEST_NORM || (b.norm[i] != 0.f && largest - (__float_as_uint(b.scale[i]) >> 23) > LEAST_SHARE);
            add_to_tile(args.tiles[side], i, b.norm[i], 0.f, 0, odd);
        }
    }
    double pairs[2] = {0, 0}, total[2];  // of one class and of two
    for (u32 i = first; i < sides.anchors.rows; i += step) {
        pairs[0] += sides.positives(i);
        pairs[1] += sides.negatives(i);
        if (args.hardest) args.tied_anchors[i] = 0;
    }
    if (args.hardest) {
        for (u32 k = first; k < DIGITS; k += step) args.histogram[k] = 0;
        for (u32 j = first; j < sides.others.rows; j += step) args.tied_rows[j] = 0;
    }
    if (!grid_sums<BATCH_THREADS>(pairs, args.partials, sides.anchors.survey->tickets + 2, total)) return;
    const u64 of_one = u64(total[0]), of_two = u64(total[1]);
    const bool all = !args.hardest || of_two <= of_one;
    Choice& choice = *args.choice;
    choice.left = of_one / (sides.itself ? 2 : 1);
    choice.key = all ? NONE : 0;
    choice.anchor = choice.row = 0;
    choice.done = all || of_one == 0;
}

// A place in a list of numbers, the sum of those before it, and the number there.
struct Found { u32 place; u64 before, there; };
// The first of `count` places up to which the sum exceeds `at`; for thread 0. All threads of the block must call.
// value(k): the number at place k.
template <class F> DEVICE Found find(u32 count, u64 at, F value) {
    SHARED(u64, total, BATCH_THREADS);
    const u32 run = (count + BATCH_THREADS - 1) / BATCH_THREADS;
    const u32 begin = threadIdx.x * run < count ? threadIdx.x * run : count, end = begin + run < count ? begin + run : count;
    u64 sum = 0;
    for (u32 k = begin; k < end; ++k) sum += value(k);
    total[threadIdx.x] = sum;
    __syncthreads();  // the runs' sums are there
    if (threadIdx.x) return {0, 0, 0};
    u64 before = 0;
    u32 t = 0;
    for (; t < BATCH_THREADS - 1 && before + total[t] <= at; ++t) before += total[t];
    u32 k = t * run;
    for (; k < count - 1 && before + value(k) <= at; ++k) before += value(k);
    return {k, before, value(k)};
}

// One block, after the sweep of a phase: narrows the choice down.
KERNEL(batch_contrastive_pick, BATCH_THREADS, const Args args) {
    Choice& choice = *args.choice;
    if (choice.done) return;
    const u64 left = choice.left;
    // The last pair that is wanted has the index left - 1 among those that agree so far.
    if (args.phase <= DIGIT_2) {
        const Found last = find(DIGITS, left - 1, [&](u32 k) { return args.histogram[k]; });
        __syncthreads();  // thread 0 has read the histogram
        for (u32 k = threadIdx.x; k < DIGITS; k += BATCH_THREADS) args.histogram[k] = 0;
        if (threadIdx.x) return;
        const u32 shift = shift_of(args.phase), key = choice.key | last.place << shift;
        choice.left = left - last.before;
        const bool whole = choice.left == last.there;
        // With `whole` all that agree so far are selected.
        choice.key = whole ? key + (1u << shift) : key;
        choice.done = whole;
    } else if (args.phase == TIED_ANCHORS) {
        const Found last = find(args.sides.anchors.rows, left - 1, [&](u32 k) { return args.tied_anchors[k]; });
        if (threadIdx.x) return;
        choice.left = left - last.before;
        const bool whole = choice.left == last.there;
        choice.anchor = whole ? last.place + 1 : last.place;
        choice.done = whole;
    } else {
        const Found last = find(args.sides.others.rows, left - 1, [&](u32 k) { return args.tied_rows[k]; });
        if (threadIdx.x) return;
        choice.row = last.place + 1;
        choice.done = 1;
    }
}

// ---- the sweep ----

// batch_contrastive as a loss of a sweep. ROOT: the distance is Euclidean.
template <class S, bool ROOT> struct SweptPairs {
    static constexpr int planes = 2;

    const Args& args;
    const Course& course;
    const Batch &of_rows, &of_columns;
    TermsShared<S::across>& shared;
    TileOf of;            // the tile that is taken
    Distances<S, ROOT> distances;
    float margin;   // of distances as the sweep has them: twice that of cosine
    float enlarge;  // weights are at most the margin, or for roots 8 margins over a column's scale: times this and a factor they are f16
    bool ordinary;  // whether such a number exists
    u32 index;      // tiles taken so far
    float total[2]; // sums of the rows' weights
    double squares[2], active[2], sum[2];

    DEVICE SweptPairs(const Args& args, const Course& course, const Batch& of_rows, const Batch& of_columns, TermsShared<S::across>& shared)
        : args(args), course(course), of_rows(of_rows), of_columns(of_columns), shared(shared),
          distances(args.sides, args.sweep.which, course),
          margin(float(args.margin) * (args.kind == COSINE ? 2.f : 1.f)), index(0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            total[r] = 0.f;
            squares[r] = active[r] = sum[r] = 0;
        }
        // Exponents: of the next power of two above the margin, of the largest scale, and of what makes 2^13 at most of all.
        const int of_margin = int(__float_as_uint(margin) >> 23) - 126, of_scale = ROOT ? 3 : int(of_columns.survey->largest_scale()) - 127;
        const int exponent = margin > 0.f ? 12 - of_margin - of_scale : 0;
        ordinary = exponent > -100 && exponent < 100;
        enlarge = __uint_as_float(u32(ordinary ? exponent + 127 : 127) << 23);
        shared.left.clear(S::threads);
    }
    DEVICE void look(u32 tile) { of = args.tiles[args.sides.itself ? 0 : 1 - args.sweep.which][tile]; }
    DEVICE void bring(u32 tile) { shared.bring(of_columns, tile); }
    DEVICE bool weigh(u32 tile, Products<S>& d, Weights<S, 2>& w) {
        float least[2], sums[2];
        if (!distances.make(tile, of, ordinary && !of.odd, shared.terms[0], d, least, sums, shared.left, index++)) return false;
#pragma unroll
        for (int r = 0; r < 2; ++r) sum[r] += double(sums[r]);
        if (!__any_sync(0xffffffff, least[0] < margin || least[1] < margin)) return false;
        float of_squares[2] = {0.f, 0.f}, of_active[2] = {0.f, 0.f}, of_weights[2] = {0.f, 0.f};
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> t = load<float, 4>(shared.terms[0][S::column(j)]);
            const float factor[2] = {t.v[1] * enlarge, t.v[3] * enlarge};
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float scaled[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float distance = d[j][r * 2 + e], gap = fmaxf(margin - distance, 0.f);
                    of_squares[r] = fmaf(gap, gap, of_squares[r]);
                    of_active[r] += is_below(distance, margin);
                    const float weight = ROOT ? gap * reciprocal(distance) : gap;
                    of_weights[r] += weight;
                    scaled[e] = weight * factor[e];
                }
                split_weights<S>(w, j, r, scaled);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            squares[r] += double(of_squares[r]);
            active[r] += double(of_active[r]);
            total[r] += of_weights[r];
        }
        return args.sweep.with_grad;
    }
    // Half of the slope of d^2 / 2 over what is summed up here: weights are gaps, or gaps over distances.
    DEVICE float slope() const { return args.kind == SQUARED ? 2.f : args.kind == EUCLIDEAN ? 1.f : .5f; }
    // A factor is -2 times a scale, and gaps are pulls the other way.
    DEVICE float scale() const { return .5f * slope() / enlarge; }
    // Writes what was summed up for the rows. All threads of the block call, behind a barrier.
    DEVICE void end() {
        const u32 half = blockIdx.x % args.sweep.splits * S::across + S::warp_column() / S::columns;
        const double unit = args.kind == COSINE ? .5 : 1;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float weight = group_sum<4>(total[r]);
            const double of_row[3] = {group_sum<4>(squares[r]) * unit * unit, group_sum<4>(active[r]), group_sum<4>(sum[r]) * unit};
            const u32 row = course.row_tile * TILE + S::row() + r * 8;
            if (threadIdx.x % 4 > 0 || row >= of_rows.rows) continue;
            const u64 at = u64(half) * of_rows.padded + row;
            args.sweep.weights[at] = -weight * slope();
            if (args.sweep.which == 1) continue;
#pragma unroll
            for (int k = 0; k < 3; ++k) args.sums[at * TERCET_SUMS_OF_ROW + k] = of_row[k];
        }
    }
};

// A block takes a row tile with every `splits`-th column tile. P: the precision. S: the shape. ROOT: the distance is Euclidean.
template <class P, class S, bool ROOT> DEVICE void sweep(const Args& args) {
    using Shared = TermsSweepShared<P, S>;
    SHARED_DYNAMIC(Shared, s);
    const Sides& sides = args.sides;
    const u32 which = args.sweep.which;
    const Batch &a = which ? sides.others : sides.anchors, &b = which ? sides.anchors : sides.others;
    const bool ordinary = !args.tiles[which][blockIdx.x / args.sweep.splits].odd;
    const u32 taken = args.sweep.taken(b.padded / TILE);  // not after the sweep, through which more would be kept for it
    const Course course = args.sweep.course<S>(a, b, ordinary);
    SweptPairs<S, ROOT> loss(args, course, a, b, s.loss);
    Sweep<P, S>(s.tiles, course).run(loss);
    loss.end();
    s.loss.left.write(args.sweep.left_of_block(), taken, S::threads, !ordinary);
}

// ---- what the sweep leaves ----

constexpr int HALF = TILE / 2;
static_assert(TILE_THREADS == 2 * TILE, "two threads a row");

// What the slope of the distance d is, with differences of rows to come.
DEVICE float slope_of(u32 kind, float d) { return kind == SQUARED ? 2.f : kind == COSINE ? 1.f : d > 0.f ? 1.f / d : 0.f; }
// The weight of a pair at distance d below the margin m: (d - m) times the slope of d.
DEVICE float weight_of(u32 kind, float d, float margin) { return (d - margin) * slope_of(kind, d); }

// What the sweep has left of a block's tiles. P: the precision.
template <class P> DEVICE void left(const Args& args) {
    SHARED_DYNAMIC(PushBuffers<P>, s);
    static_assert(has_size<P, PushBuffers<P>>(TERCET_SWEEP_LEFT_SHARED), "src/constants.rs");
    SHARED(u32, any, 1);
    const Sides& sides = args.sides;
    const Batch &a = args.sweep.which ? sides.others : sides.anchors, &b = args.sweep.which ? sides.anchors : sides.others;
    const Swept& sweep = args.sweep;
    const u32 splits = sweep.splits, split = blockIdx.x % splits, row_base = blockIdx.x / splits * TILE;
    const u32 taken = sweep.taken(b.padded / TILE);
    const u8* const bytes = sweep.left_of_block();
    if (!sweep.has_left(taken, any[0])) return;
    // Two threads look at a row of the tile, every second distance each.
    const u32 mine = threadIdx.x / 2, half = threadIdx.x % 2, row = row_base + mine;
    const float margin = float(args.margin), infinity = __uint_as_float(0x7f800000), masked = nan_value<float>();
    double squares = 0, distances = 0;
    float weights = 0;
    u32 active = 0;
    float* pushed = sweep.left_pushed + (i64(split) * a.padded + row_base) * a.dim;
    if (args.sweep.with_grad)
        for (u32 k = threadIdx.x; k < TILE * a.dim; k += TILE_THREADS) pushed[k] = 0.f;
    for (u32 tile = 0; tile < taken; ++tile) {
        if (!bytes[tile]) continue;
        const u32 base[2] = {row_base, (split + tile * splits) * TILE};
        const auto keep = [&](int r, int c, float squared) { s.d[r][c] = args.kind == SQUARED ? squared : args.kind == EUCLIDEAN ? sqrtf(squared) : squared * .5f; };
        distances_left<P>(s.buffers, a, b, args.sweep.which ? sides.other_first : sides.first, args.sweep.which ? sides.other_end : sides.end, base, bytes[tile], sweep.halves / splits, keep,
                          [&](int r, int c) { s.d[r][c] = -infinity; }, [] {});
        if (threadIdx.x == 0) any[0] = 0;
        __syncthreads();  // the tile's distances are there
        float tile_squares = 0, tile_distances = 0;
        bool pulled = false;
#pragma unroll 2
        for (int q = 0; q < HALF; ++q) {
            const float d = s.d[mine][2 * q + half];
            float weight = 0;
            if (d != -infinity) {
                const bool lost = !(d < infinity);
                const float gap = d < margin ? margin - d : 0.f;
                tile_squares += lost ? masked : gap * gap;
                tile_distances += d;
                active += d < margin;
                if (lost || d < margin) weight = lost ? masked : weight_of(args.kind, d, margin);
                pulled = pulled || weight != 0.f;
            }
            s.d[mine][2 * q + half] = weight;
            weights += weight;
        }
        squares += double(tile_squares);
        distances += double(tile_distances);
        if (pulled) atomicOr(&any[0], 1u);
        __syncthreads();  // the weights are there
        if (any[0] && args.sweep.with_grad) push(s.d, s.y, a.y + i64(base[0]) * a.dim, b.y + i64(base[1]) * b.dim, a.dim, true, pushed);
        else __syncthreads();  // all threads have read any[0], and are done with the weights
    }
    squares = group_sum<2>(squares);
    distances = group_sum<2>(distances);
    weights = group_sum<2>(weights);
    active = group_sum<2>(active);
    if (row >= a.rows || half) return;
    const u64 at = u64(split) * a.padded + row;
    if (args.sweep.with_grad) sweep.left_weights[at] = weights;
    if (args.sweep.which == 1) return;
    double* sums = args.sums + (u64(sweep.halves) * a.padded + at) * TERCET_SUMS_OF_ROW;
    sums[0] = squares;
    sums[1] = active;
    sums[2] = distances;
}

// ---- passes over tiles ----

// The shared memory of `pass`. P: the precision.
template <class P> struct Shared : PushBuffers<P> {
    u32 digits[DIGITS];
};

// A block takes a row tile with every `splits`-th column tile. P: the precision.
template <class P> DEVICE void pass(const Args& args) {
    SHARED_DYNAMIC(Shared<P>, s);
    static_assert(has_size<P, Shared<P>>(TERCET_BATCH_CONTRASTIVE_SHARED), "src/constants.rs");
    SHARED(u32, any, 1);
    using Tile = GramTile<P>;
    const Sides& sides = args.sides;
    const u32 phase = args.phase;
    const Choice choice = *args.choice;
    const bool selecting = phase < SUMS;
    if (selecting && choice.done) return;
    const Batch &rows = args.sweep.which ? sides.others : sides.anchors, &columns = args.sweep.which ? sides.anchors : sides.others;
    const u32 tiles = columns.padded / TILE, row_tile = blockIdx.x / args.sweep.splits, split = blockIdx.x % args.sweep.splits;
    const u32 row_base = row_tile * TILE;
    // Two threads look at a row of the tile, every second distance each.
    const u32 mine = threadIdx.x / 2, half = threadIdx.x % 2, row = row_base + mine;
    const float margin = float(args.margin), infinity = __uint_as_float(0x7f800000), masked = nan_value<float>();
    double squares = 0, distances = 0;
    u32 active = 0;

    float* pushed = args.sweep.pushed + (i64(split) * rows.padded + row_base) * rows.dim;
    if (phase == PUSH)
        for (u32 k = threadIdx.x; k < TILE * rows.dim; k += TILE_THREADS) pushed[k] = 0.f;
    if (phase <= DIGIT_2)
        for (u32 k = threadIdx.x; k < DIGITS; k += TILE_THREADS) s.digits[k] = 0;
    __syncthreads();  // the zeros are there: without a tile there is no other barrier

    const Operand side[2] = {sides.anchors.operand(), sides.others.operand()};
    for (u32 column_tile = split; column_tile < tiles; column_tile += args.sweep.splits) {
        const bool itself = sides.itself, diagonal = itself && row_tile == column_tile;
        // In a batch by itself a pair is counted once.
        if (selecting && itself && column_tile < row_tile) continue;
        // Side 0 is the anchors', in a batch by itself the lower rows: both orders of a pair have one distance.
        const bool turned = args.sweep.which || (itself && column_tile < row_tile);
        const u32 column_base = column_tile * TILE;
        const u32 base[2] = {turned ? column_base : row_base, turned ? row_base : column_base};
        if (itself) {
            const u32 highest = base[1] + TILE;
            if (rows.end[base[0]] >= (highest < rows.rows ? highest : rows.rows)) continue;  // one class
        }
        {
            Tile tile;
            tile.run(s.buffers, side, base);
            u32 first[Tile::ROWS], end[Tile::ROWS];
#pragma unroll
            for (int slot = 0; slot < Tile::ROWS; ++slot) {
                const u32 i = base[0] + Tile::row_of(slot);
                first[slot] = i < sides.anchors.rows ? sides.first[i] : 0;
                end[slot] = i < sides.anchors.rows ? sides.end[i] : NONE;
            }
            // Euclidean distances stay squares: the root would make some of them equal.
            const auto keep = [&](int r, int c, float compared) {
                if (!turned) s.d[r][c] = compared;
                if (turned || diagonal) s.d[c][r] = compared;
            };
            tile.each(
                [&](int slot, int r, int c, float product) {
                    const u32 i = base[0] + r, j = base[1] + c;
                    if (diagonal && c < r) return false;
                    if (j >= sides.others.rows || (j >= first[slot] && j < end[slot])) {
                        keep(r, c, masked);
                        return false;
                    }
                    bool near;
                    const float d = squared_distance(sides.anchors, i, sides.others, j, product, near);
                    near = near || !is_finite(d);
                    if (!near) keep(r, c, args.kind == COSINE ? d * .5f : d);
                    return near;
                },
                [&](int, int r, int c) {
                    const float d = near_squared_distance(sides.anchors, base[0] + r, sides.others, base[1] + c);
                    keep(r, c, args.kind == COSINE ? d * .5f : d);
                });
        }
        if (threadIdx.x == 0) any[0] = 0;
        __syncthreads();  // the tile's distances are there

        const auto pair_of = [&](u32 column) { return args.sweep.which ? named(sides, column, row) : named(sides, row, column); };
        const auto upstream_of = [&](u32 anchor) { return args.upstream[sides.anchors.order[anchor] * args.upstream_stride]; };
        float tile_squares = 0, tile_distances = 0;
        bool pulled = false;
#pragma unroll 2
        for (int q = 0; q < HALF; ++q) {
            const u32 c = 2 * q + half, column = column_base + c;
            const float compared = s.d[mine][c];
            if (phase == PUSH) s.d[mine][c] = 0.f;
            if (!(compared == compared)) continue;
            const u32 key = key_of(compared);
            if (selecting) {
                if (diagonal && column < row) continue;
                if (phase <= DIGIT_2) {
                    if (agrees(key, choice.key, phase)) atomicAdd(&s.digits[key >> shift_of(phase) & (DIGITS - 1)], 1u);
                } else if (key == choice.key) {
                    const Named pair = pair_of(column);
                    if (phase == TIED_ANCHORS) atomicAdd(&args.tied_anchors[pair.anchor], 1u);
                    else if (pair.anchor == choice.anchor) args.tied_rows[pair.row] = 1;
                }
                continue;
            }
            if (key > choice.key) continue;
            if (key == choice.key) {
                const Named pair = pair_of(column);
                if (pair.anchor > choice.anchor || (pair.anchor == choice.anchor && pair.row >= choice.row)) continue;
            }
            const float d = args.kind == EUCLIDEAN ? sqrtf(compared) : compared;
            const bool lost = !(d < infinity);
            if (phase == SUMS) {
                const float gap = d < margin ? margin - d : 0.f;
                tile_squares += lost ? masked : args.linear ? gap : gap * gap;
                tile_distances += d;
                active += d < margin;
            } else if (lost || d < margin) {
                const float up = !itself ? upstream_of(args.sweep.which ? column : row) : upstream_of(row) + upstream_of(column);
                s.d[mine][c] = lost ? masked : (args.linear ? -slope_of(args.kind, d) : weight_of(args.kind, d, margin)) * up;
                pulled = true;
            }
        }
        squares += double(tile_squares);
        distances += double(tile_distances);
        if (phase == PUSH) {
            if (pulled) atomicOr(&any[0], 1u);
            __syncthreads();  // the weights are there
            if (any[0]) push(s.d, s.y, rows.y + i64(row_base) * rows.dim, columns.y + i64(column_base) * rows.dim, rows.dim, args.kind != COSINE, pushed);
        }
        __syncthreads();  // all threads are done with the shared memory, which the next tile overwrites
    }

    if (phase <= DIGIT_2) {
        __syncthreads();  // all threads have counted
        for (u32 k = threadIdx.x; k < DIGITS; k += TILE_THREADS)
            if (s.digits[k]) atomicAdd(&args.histogram[k], u64(s.digits[k]));
    }
    if (phase != SUMS) return;
    squares = group_sum<2>(squares);
    distances = group_sum<2>(distances);
    active = group_sum<2>(active);
    if (row < rows.rows && half == 0) {
        double* sums = args.sums + (i64(split) * rows.padded + row) * TERCET_SUMS_OF_ROW;
        sums[0] = squares;
        sums[1] = active;
        sums[2] = distances;
    }
}

// ---- the rows ----

// Whether pairs of one class cost half of their squared distance: no gap is taken.
DEVICE bool pulls_to_zero(const Args& args) { return args.pos_margin == 0 && !args.linear; }

// A warp takes the positives and sums of an anchor. T: the type of the caller's rows.
template <class T> DEVICE void finish(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    const u32 lane = threadIdx.x % 32;
    const bool bad = sides.bad();
    const float pos_margin = float(args.pos_margin);
    const double unit = args.linear ? 1 : .5;
    // Loss, pairs of one class and of two, active, distances of one class and of two; of one class: loss, active. Of two: loss.
    double sums[TERCET_TOTALS] = {};
    for (u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; row < a.rows; row += gridDim.x * (BATCH_THREADS / 32)) {
        const Row<T> x = original_row<T>(a, row);
        const u32 own = sides.own_of(row), positives = sides.positives(row), negatives = sides.negatives(row);
        double loss = 0, active = 0, distances[2] = {0, 0};
        for (u32 p = sides.first[row]; p < sides.end[row]; ++p) {
            if (p == own) continue;
            // The loss is of the square of a Euclidean distance: no root that is squared again.
            const float compared = direct_distance(x, original_row<T>(b, p), b.dim, args.kind == EUCLIDEAN ? SQUARED : args.kind);
            const float d = args.kind == EUCLIDEAN ? sqrtf(compared) : compared;
            if (pulls_to_zero(args)) {
                loss += !is_finite(compared) ? nan_value<double>() : args.kind == EUCLIDEAN ? double(compared) : double(d) * double(d);
                active += d != 0.f ? 1 : 0;
            } else {
                const float gap = d > pos_margin ? d - pos_margin : 0.f;
                loss += !is_finite(compared) ? nan_value<double>() : args.linear ? double(gap) : double(gap) * double(gap);
                active += gap != 0.f ? 1 : 0;
            }
            distances[0] += double(d);
        }
        const double of_one[2] = {loss * unit, active};
        double of_two = 0;
        for (u32 part = 0; part < (args.swept ? args.sweep.halves + args.sweep.splits : args.sweep.splits); ++part) {
            if (args.swept && !args.sweep.has_part(row, part)) continue;
            const double* of_row = args.sums + (i64(part) * a.padded + row) * TERCET_SUMS_OF_ROW;
            loss += of_row[0];
            of_two += of_row[0];
            active += of_row[1];
            distances[1] += of_row[2];
        }
        loss *= unit;
        // An anchor in any pair has looked at every row: any bad one makes its loss NaN.
        const bool pairs = positives > 0 || (negatives > 0 && args.choice->key != 0);
        if (bad && (pairs || a.norm[row] != a.norm[row])) loss = nan_value<double>();
        if (lane == 0) {
            if (args.losses) args.losses[a.order[row]] = float(loss);
            sums[0] += loss;
            sums[1] += positives;
            sums[2] += negatives;
            sums[3] += active;
            sums[4] += distances[0];
            sums[5] += distances[1];
            sums[6] += of_one[0];
            sums[7] += of_one[1];
            sums[8] += of_two * unit;
        }
    }
    double total[TERCET_TOTALS];
    if (!grid_sums<BATCH_THREADS>(sums, args.partials, sides.anchors.survey->tickets + 3, total)) return;
    const double selected = args.hardest && total[1] < total[2] ? total[1] : total[2], valid = total[1] + selected;
    // What a mean is over: pairs of one class, and of two.
    const double of_one = args.over_active ? total[7] : total[1], of_two = args.over_active ? total[3] - total[7] : selected;
    const bool apart = args.apart && args.mean;
    const double terms = apart ? of_one : of_one + of_two;
    const double scale = args.mean && terms > 0 ? 1 / terms : 1, scale_of_two = apart ? (of_two > 0 ? 1 / of_two : 1) : scale;
    args.choice->share = apart ? float(scale_of_two / scale) : 1.f;
    const double loss = apart ? total[6] * scale + total[8] * scale_of_two : total[0] * scale;
    if (args.loss) *args.loss = bad ? nan_value<float>() : float(loss);
    write_stats(args.stats, valid, total[3], total[1] > 0 ? total[4] / total[1] : 0, selected > 0 ? total[5] / selected : 0, bad, scale);
}

// A warp writes the gradient of a row. T: the type of the caller's rows. P: the precision.
template <class T, class P> DEVICE void backward(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &rows = args.sweep.which ? sides.others : sides.anchors, &columns = args.sweep.which ? sides.anchors : sides.others;
    const u32 lane = threadIdx.x % 32, row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32;
    if (row >= rows.rows) return;
    const Row<T> x = original_row<T>(rows, row);
    float* g = args.sweep.scratch + i64(row) * rows.dim;
    const float share = args.choice->share, pos_margin = float(args.pos_margin);
    const auto upstream_of = [&](u32 anchor) { return args.upstream[sides.anchors.order[anchor] * args.upstream_stride]; };
    if (args.grad_is_swept) {
        // In a batch by itself each pair counts twice.
        const float up = *args.upstream * (sides.itself ? 2.f : 1.f) * share;
        const Pushes<P> pushes(args.sweep, rows, row);
        for (u32 c = lane; c < rows.dim; c += 32) g[c] = pushes(c) * up;
    } else
        for (u32 c = lane; c < rows.dim; c += 32) {
            float sum = 0;
            for (u32 split = 0; split < args.sweep.splits; ++split) sum += args.sweep.pushed[(i64(split) * rows.padded + row) * rows.dim + c];
            g[c] = sum * share;
        }
    const u32 first = (args.sweep.which ? sides.other_first : sides.first)[row], end = (args.sweep.which ? sides.other_end : sides.end)[row];
    for (u32 p = first; p < end; ++p) {
        if (args.sweep.which ? sides.own_of(p) == row : sides.own_of(row) == p) continue;
        const Row<T> y = original_row<T>(columns, p);
        const float compared = direct_distance(x, y, rows.dim, args.kind == EUCLIDEAN ? SQUARED : args.kind);
        // The weight is d times the slope of d: for Euclidean distances nothing is divided.
        float weight = args.kind == SQUARED ? 2.f * compared : args.kind == EUCLIDEAN ? 1.f : compared;
        if (!pulls_to_zero(args)) {
            const float d = args.kind == EUCLIDEAN ? sqrtf(compared) : compared;
            weight = d > pos_margin ? (args.linear ? 1.f : d - pos_margin) * slope_of(args.kind, d) : 0.f;
        }
        weight *= sides.itself ? upstream_of(row) + upstream_of(p) : upstream_of(args.sweep.which ? p : row);
        if (!is_finite(compared)) weight = nan_value<float>();
        for (u32 c = lane; c < rows.dim; c += 32) g[c] += args.kind == COSINE ? -weight * y(c) : weight * (x(c) - y(c));
    }
    write_gradient<T>(rows, row, g, float(args.stats[4]), sides.bad(), args.grad);
}

KERNEL(batch_contrastive_left_highest, TILE_THREADS, const Args args) { left<Split>(args); }
KERNEL(batch_contrastive_left_half, TILE_THREADS, const Args args) { left<Half>(args); }
KERNEL(batch_contrastive_pass_highest, TILE_THREADS, const Args args) { pass<Split>(args); }
KERNEL(batch_contrastive_pass_half, TILE_THREADS, const Args args) { pass<Half>(args); }
SWEEPS(batch_contrastive)
// The kernels for rows of type T.
#define OF_TYPE(dtype, T)                                                                                              \
    KERNEL(batch_contrastive_finish_##dtype, BATCH_THREADS, const Args args) { finish<T>(args); }                      \
    KERNEL(batch_contrastive_backward_##dtype##_highest, BATCH_THREADS, const Args args) { backward<T, Split>(args); } \
    KERNEL(batch_contrastive_backward_##dtype##_half, BATCH_THREADS, const Args args) { backward<T, Half>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
