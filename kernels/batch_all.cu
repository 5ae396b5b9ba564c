// batch_all:  sum over all (a, p, n) of relu(d_ap - d_an + m).
//
// With t_ap = d_ap + m, c_an = #{p : t_ap > d_an} and c_ap = #{n : d_an < t_ap}:
//     sum = sum_ap c_ap t_ap - sum_an c_an d_an,      active triplets = sum_ap c_ap,
// and the gradient's weights are W_ap = c_ap, W_an = -c_an: never a list of triplets. docs/batch-all.md derives it.
//
// pairs:    where each row's pairs with its class lie in memory (sizes are known on the device alone); d_ap directly, and the
//           thresholds t_ap, those of large classes ascending, for counts by binary search.
// sweep:    each pair is counted against its row's thresholds and against its column's, and the row is pushed away from the
//           column by both (sweep.cuh); only integers are atomic. Against a reference set there are two sweeps: in the first
//           the rows are the anchors, and in the second, for the reference set's gradient, the columns.
// left:     the same for pairs that the sweep leaves: near ones, and those of large classes, by differences. The last block of
//           a row tile then knows the loss of its anchors, and the very last one the batch's.
// backward: pushes and pulls, through the normalisation, times upstream / M, in the caller's type.
#include "ordinary.cuh"
#include "push.cuh"

// Distances are compared with each threshold of classes of at most so many rows; those of larger ones are searched.
constexpr u32 COMPARED = TERCET_COMPARED;

// What a sweep needs of a tile's rows as columns. As many bytes as TERCET_BATCH_ALL_COLUMNS says.
struct alignas(16) ColumnsOf {
    float terms[TILE][2];                     // norm and factor
    f16 share[TILE];                          // a row's scale over the batch's largest, times COUNTED
    u8 padding[TILE * 8 - TILE * 2];          // up to as many bytes for each thread of a block
    float thresholds[COMPARED / 2][TILE][2];  // of anchors, in twos, as distances of a sweep are compared with them; else -MASKED
};
static_assert(sizeof(ColumnsOf) == TERCET_BATCH_ALL_COLUMNS, "src/constants.rs");

// The same layout as `Args` in src/batch_all/cuda.rs. Rows are in class order, except in `grad`. An anchor has a
// pair with each row of its class in order, itself included: pair start[row] + k is the one with row first[row] + k.
struct Args {
    Sides sides;
    u64* start;       // [anchors + 1]: where an anchor's pairs begin
    float* distance;  // [capacity]: d_ap
    float* threshold; // [capacity]: d_ap + m, -MASKED for the row itself; large classes: ascending
    u32* place;       // [capacity]: large classes: the place of a pair's threshold among these
    u32* count;       // [capacity]: c_ap; large classes: by place, a histogram of how many thresholds are not above d_an, and then c_ap
    float* reach;     // [anchors]: the largest threshold
    ColumnsOf* columns[2];  // of the tiles of the anchors, and of the others: what a sweep needs of them as columns
    TileOf* tiles[2]; // of the anchors, and of the others
    u32* largest_class;   // rows of the largest class of a sweep
    u32* tickets;     // [row tiles] of the sweep's rows
    Swept sweep;      // of one side's rows
    double* sums;     // [halves + splits, padded, 2]: sum_n c_an d_an, sum_n d_an; first those of the sweep
    double* partials; // TERCET_STATS a row tile
    float* loss;      // null: not wanted
    double* stats;    // what write_stats writes
    const float* upstream;
    void* grad;       // [rows, dim] of type T, of the sweep's rows by original index
    double margin;
    u64 capacity;
    u32 kind, mean;   // mean: 0 sum, 1 over active triplets, 2 over valid ones
    u32 most;         // rows of the largest class that a sweep takes
    u32 padding;      // to the end of 8 bytes: the host's struct has no gaps
};

// Shares are multiplied by so much: counts of both sides, up to 2 COMPARED, times a share are f16 at most, and exact down to
// shares of 2^-33.
constexpr float COUNTED = 0x1p9f;
static_assert(2 * COMPARED * COUNTED <= 0x1p15f, "f16");
constexpr u32 LEAST_SHARE = 33;

// Whether there is memory for all pairs.
DEVICE bool fits(const Args& args) { return args.start[args.sides.anchors.rows] <= args.capacity; }
// Makes the loss NaN.
DEVICE void overflow(const Args& args) { atomicOr(&args.sides.anchors.survey->overflowed, 1u); }
DEVICE float threshold_of(const Args& args, float d_ap) { return d_ap + float(args.margin); }
// A threshold as distances of a sweep are compared with it: twice that of cosine distances.
DEVICE float as_swept(const Args& args, float threshold) { return args.kind == COSINE ? fminf(2.f * threshold, MASKED) : threshold; }

// A warp says of a row of a batch what a sweep needs of it: its share, and what its tile has. reach, size: of an anchor.
DEVICE void describe(const Args& args, bool other, u32 row, u32 largest, float reach, u32 size) {
    const Batch& b = other ? args.sides.others : args.sides.anchors;
    if (threadIdx.x % 32 > 0) return;
    ColumnsOf& columns = args.columns[other][row / TILE];
    f16& share = columns.share[row % TILE];
    constexpr u32 PADDING = sizeof(columns.padding) / TILE;
#pragma unroll
    for (u32 k = 0; k < PADDING; ++k) columns.padding[row % TILE * PADDING + k] = 0;
    store<float, 2>(columns.terms[row % TILE], load<float, 2>(&b.terms[row * 2]));
    if (row >= b.rows) {
        share = {0};
        return;
    }
    const u32 exponent = __float_as_uint(b.scale[row]) >> 23;
    // A row of zeros adds nothing, whatever its weights.
    const bool zero = b.norm[row] == 0.f, odd = !zero && largest - exponent > LEAST_SHARE;
    narrow(share, zero || odd ? 0.f : __uint_as_float((127 - (largest - exponent)) << 23) * COUNTED);
    if (size <= args.most && size > 0) atomicMax(args.largest_class, size);
    add_to_tile(args.tiles[other], row, b.norm[row], reach, size, odd || b.norm[row] > LARGEST_NORM);
}

// A warp takes the pairs of an anchor. T: the type of the caller's rows.
template <class T> DEVICE void pairs(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = sides.anchors, &b = sides.others;
    constexpr u32 WARPS = PairStarts::WARPS;
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 largest[2] = {a.survey->largest_scale(), b.survey->largest_scale()};
    PairStarts starts(sides);
    // The last block that has anchors takes the rows up to whole tiles too.
    const u32 end = starts.begin < starts.end && starts.end == a.rows ? a.padded : starts.end;
    for (u32 base = starts.begin; base < end; base += WARPS) {
        const u32 row = base + warp;
        float reach = -MASKED, swept = -MASKED;
        u32 size = 0;
        if (row < starts.end) {
            const u64 start = starts.of(row, args.start);
            size = sides.size_of_class(row);
            const bool fits = start + size <= args.capacity;
            if (!fits && lane == 0) overflow(args);
            const Row<T> x = original_row<T>(a, row);
            const u32 first = sides.first[row], own_row = sides.own_of(row);
            for (u32 k = 0; k < size && fits; ++k) {
                const u64 at = start + k;
                const bool own = first + k == own_row;
                const float d = own ? 0.f : direct_distance(x, original_row<T>(b, first + k), b.dim, args.kind);
                const float t = own ? -MASKED : threshold_of(args, d);
                if (!is_finite(t)) overflow(args);
                reach = fmaxf(reach, t);
                if (lane == k % 32) swept = own ? -MASKED : as_swept(args, t);
                if (lane == 0) {
                    args.distance[at] = d;
                    args.threshold[at] = t;
                    args.count[at] = 0;
                    if (size > COMPARED) args.place[at] = k;
                }
            }
            if (lane == 0) args.reach[row] = reach;
        }
        if (row < end) {
            // Of a class of more rows than a sweep takes these are never read.
            static_assert(COMPARED == 32, "a lane a threshold");
            args.columns[0][row / TILE].thresholds[lane / 2][row % TILE][lane % 2] = swept;
            describe(args, false, row, largest[0], as_swept(args, reach), size);
        }
        __syncthreads();  // the thresholds of the block's rows are there
        for (u32 r = base; r < base + WARPS && r < starts.end; ++r) {
            const u32 size = sides.size_of_class(r);
            if (size <= COMPARED || args.start[r] + size > args.capacity) continue;
            float* threshold = args.threshold + args.start[r];
            u32 *place = args.place + args.start[r], *count = args.count + args.start[r];
            sort(size, [&](u32 i, u32 j) {
                if (threshold[j] < threshold[i]) {
                    exchange(threshold[i], threshold[j]);
                    exchange(place[i], place[j]);
                }
            });
            // Which pair has a place is known, and wanted is the place of a pair.
            for (u32 k = threadIdx.x; k < size; k += BATCH_THREADS) count[place[k]] = k;
            __syncthreads();  // the places are there
            for (u32 k = threadIdx.x; k < size; k += BATCH_THREADS) {
                place[k] = count[k];
                count[k] = 0;
            }
        }
    }
    if (sides.itself) return;
    for (u32 row = blockIdx.x * WARPS + warp; row < b.padded; row += gridDim.x * WARPS) describe(args, true, row, largest[1], 0.f, 0);
}

// ---- the sweep ----

// What a sweep keeps of a tile's rows and columns, and counts. MOST: thresholds of a row.
template <int MOST> struct CountShared {
    // The beginning of a ColumnsOf.
    float terms[TILE][2];
    f16 share[TILE];
    u8 padding[TILE * 8 - TILE * 2];
    float columns[MOST / 2][TILE][2];
    float rows[MOST / 2][TILE][2];     // thresholds of the rows, in twos
    u32 count[MOST][TILE];             // c_ap, by pair and row of the tile
    Left left;
};

// Compares distances with thresholds.
template <class S, int MOST> struct Count {
    CountShared<MOST>& shared;

    // Adds to c[j][e] how many of the first `pairs` twos of thresholds of its row, one at least, are above d[j][e], and counts for
    // each threshold how many distances are below.
    DEVICE void against_rows(u32 pairs, const Products<S>& d, Products<S>& c) const {
        const float* thresholds = shared.rows[0][S::row()];
        u32* counts = &shared.count[0][S::row()];
        u32 k = 0;
#pragma unroll 1
        do {
            const Pack<float, 2> t[2] = {load<float, 2>(thresholds), load<float, 2>(thresholds + 16)};
            float n[2][2] = {};
#pragma unroll
            for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float below = is_below(d[j][e], t[e / 2].v[half]);
                        n[e / 2][half] += below;
                        c[j][e] += below;
                    }
#pragma unroll
            for (int r = 0; r < 2; ++r)
#pragma unroll
                for (int half = 0; half < 2; ++half) atomicAdd(&counts[half * TILE + r * 8], u32(n[r][half]));
            thresholds += TILE * 2;
            counts += TILE * 2;
        } while (++k < pairs);
    }
    // Adds to c[j][e] how many of the first `pairs` twos of thresholds of its column are above d[j][e].
    DEVICE void against_columns(u32 pairs, const Products<S>& d, Products<S>& c) const {
        const float* thresholds = shared.columns[0][S::column(0)];
#pragma unroll 1
        for (u32 k = 0; k < pairs; ++k, thresholds += TILE * 2)
#pragma unroll
            for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j) {
                const Pack<float, 4> t = load<float, 4>(thresholds + j * 16);
#pragma unroll
                for (int e = 0; e < 4; ++e)
#pragma unroll
                    for (int half = 0; half < 2; ++half) c[j][e] += is_below(d[j][e], t.v[e % 2 * 2 + half]);
            }
    }
};

// The weights of counted pairs of a warp, for distances that are not roots: the counts themselves.
template <class S, bool ROOT> struct Weigh {
    static constexpr int planes = 1;
    static constexpr bool has_row_sums = true;  // whether each thread's total is that of the whole row

    // What the sums of weights times columns are multiplied by. largest: the exponent of the columns' largest scale.
    static DEVICE float scale(u32 largest) { return __uint_as_float(largest << 23) * (1.f / COUNTED); }
    // w: each count times its column's share. total: the sum of each row's weights.
    static DEVICE void make(const Products<S>&, const Products<S>& c, const float (&)[TILE][2], const f16 (&share)[TILE], Weights<S, 1>& w, float (&total)[2]) {
        // Counts are exact, and so is their sum by products with ones.
        constexpr u32 ONES = 0x3c003c00;
        float sums[4];
#pragma unroll
        for (int k = 0; k < S::STEPS; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) w[0][k][i] = pack_f16(c[2 * k + i / 2][i % 2 * 2], c[2 * k + i / 2][i % 2 * 2 + 1]);
            if (k == 0) mma_f16_m16n8k16_first(sums, w[0][k], ONES, ONES);
            else mma_f16_m16n8k16(sums, w[0][k], ONES, ONES);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const u32 shares = *reinterpret_cast<const u32*>(&share[S::column(2 * k + half)]);
#pragma unroll
                for (int r = 0; r < 2; ++r) w[0][k][half * 2 + r] = multiply_f16(w[0][k][half * 2 + r], shares);
            }
        }
        // A product with ones has the same sum in each column.
        total[0] += sums[0];
        total[1] += sums[2];
    }
};
// The same for distances that are roots: counts over distances, in two planes.
template <class S> struct Weigh<S, true> {
    static constexpr int planes = 2;
    static constexpr bool has_row_sums = false;
    // A pair that is not near is at least 1/8 of its column's scale apart: so weights times the scale are f16.
    static constexpr float ENLARGED = 8.f;

    static DEVICE float scale(u32) { return -.5f / ENLARGED; }
    static DEVICE void make(const Products<S>& d, const Products<S>& c, const float (&terms)[TILE][2], const f16 (&)[TILE], Weights<S, 2>& w, float (&total)[2]) {
        float sums[2] = {0.f, 0.f};
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> t = load<float, 4>(terms[S::column(j)]);
            // The factor is -2 times the scale.
            const float factor[2] = {t.v[1] * ENLARGED, t.v[3] * ENLARGED};
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float scaled[2];
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const float weight = c[j][r * 2 + e] * reciprocal(d[j][r * 2 + e]);
                    sums[r] += weight;
                    scaled[e] = weight * factor[e];
                }
                split_weights<S>(w, j, r, scaled);
            }
        }
        total[0] += sums[0];
        total[1] += sums[1];
    }
};

// batch_all as a loss of a sweep.
template <class S, bool ROOT, int MOST> struct SweptTriplets : Weigh<S, ROOT> {
    using Shared = CountShared<MOST>;
    using Weigher = Weigh<S, ROOT>;
    static constexpr int planes = Weigher::planes;

    const Args& args;
    const Course& course;
    const Batch &of_rows, &of_columns;
    Shared& shared;
    TileOf of;            // the tile that is taken
    Distances<S, ROOT> distances;
    bool rows_count, columns_count;
    u32 index, row_pairs;     // tiles taken so far; twos of thresholds of a row
    u32 bytes;                // of thresholds of a tile's columns that are brought
    float reach[2], total[2];  // the rows' largest thresholds; sum of their weights
    double active_distances, sum_of_distances[2];

    DEVICE SweptTriplets(const Args& args, const Course& course, const Batch& of_rows, const Batch& of_columns, Shared& shared)
        : args(args), course(course), of_rows(of_rows), of_columns(of_columns), shared(shared),
          distances(args.sides, args.sweep.which, course),
          rows_count(args.sweep.which == 0), columns_count(args.sweep.with_grad && (args.sweep.which == 1 || args.sides.itself)), index(0), row_pairs(0), active_distances(0) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const u32 row = course.row_tile * TILE + S::row() + r * 8;
            reach[r] = rows_count && row < of_rows.rows ? as_swept(args, args.reach[row]) : -MASKED;
            total[r] = 0.f;
            sum_of_distances[r] = 0;
        }
        // A loop that is gone through once at least: rows that do not count have thresholds that nothing is below.
        const u32 size = rows_count && course.first < course.end ? args.tiles[0][course.row_tile].size : 0;
        row_pairs = size > 2 ? (size + 1) / 2 : 1;
        const u32 largest = *args.largest_class < MOST ? *args.largest_class : MOST;
        bytes = columns_count ? (largest + 1) / 2 * (TILE * 8) : 0;
        for (u32 k = threadIdx.x; k < MOST * TILE; k += S::threads) shared.count[k / TILE][k % TILE] = 0;
        for (u32 k = threadIdx.x; k < row_pairs * TILE * 2; k += S::threads)
            (&shared.rows[0][0][0])[k] = rows_count ? (&args.columns[0][course.row_tile].thresholds[0][0][0])[k] : -MASKED;
        shared.left.clear(S::threads);
    }
    // The columns' side. What is rarely looked at is not kept in registers.
    DEVICE u32 side() const { return args.sides.itself ? 0 : 1 - args.sweep.which; }
    DEVICE void look(u32 tile) { of = args.tiles[side()][tile]; }

    // Copies the first `bytes` bytes of thresholds, up to what all threads copy at a time.
    template <int AT = 0> DEVICE void bring_thresholds(SharedAddress to, const u8* from) {
        constexpr int ALL = MOST * TILE * 4, ROUND = S::threads * 16;
        static_assert(ALL % ROUND == 0, "as many copies for each thread");
        if constexpr (AT < ALL) {
            // An instruction adds up to 2 KB to an address by itself.
            copy_async16_at_if<AT % 4096 - 2048>(AT < bytes, to + (AT / 4096 * 4096 + 2048), from + (AT / 4096 * 4096 + 2048));
            bring_thresholds<AT + ROUND>(to, from);
        }
    }
    DEVICE void bring(u32 tile) {
        constexpr int EACH = TILE * 16 / S::threads;  // bytes of terms and shares that a thread copies
        const u8* of_tile = reinterpret_cast<const u8*>(args.columns[side()] + tile);
        copy_async_few<EACH>(shared_address(&shared) + threadIdx.x * EACH, of_tile + threadIdx.x * EACH);
        bring_thresholds(shared_address(shared.columns) + threadIdx.x * 16, of_tile + TILE * 16 + threadIdx.x * 16);
    }
    DEVICE bool weigh(u32 tile, Products<S>& d, Weights<S, planes>& w) {
        float least[2], sums[2];
        if (!distances.make(tile, of, of.size <= MOST && !of.odd, shared.terms, d, least, sums, shared.left, index++)) return false;
        const float of_columns = columns_count ? __uint_as_float(of.reach) : -MASKED;
        bool any = false;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            sum_of_distances[r] += double(sums[r]);
            any = any || least[r] < fmaxf(reach[r], of_columns);
        }
        if (!__any_sync(0xffffffff, any)) return false;
        Products<S> c;
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) c[j][e] = 0.f;
        const Count<S, MOST> count{shared};
        count.against_rows(row_pairs, d, c);
        float active = 0;
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) active = fmaf(c[j][e], d[j][e], active);
        active_distances += double(active);
        if (!args.sweep.with_grad) return false;
        if (columns_count) count.against_columns((of.size + 1) / 2, d, c);
        Weigher::make(d, c, shared.terms, shared.share, w, total);
        return true;
    }
    DEVICE float scale() const { return Weigher::scale(of_columns.survey->largest_scale()); }
    // Writes what was summed up for the rows. All threads of the block call, behind a barrier.
    DEVICE void end() {
        const u32 half = blockIdx.x % args.sweep.splits * S::across + S::warp_column() / S::columns;
        // Only the sum over all rows is wanted of these: it is put down for the first row of each warp.
        const double active = group_sum<32>(active_distances);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float weight = Weigher::has_row_sums ? total[r] : group_sum<4>(total[r]);
            const double sum = group_sum<4>(sum_of_distances[r]);
            const u32 row = course.row_tile * TILE + S::row() + r * 8;
            if (threadIdx.x % 4 > 0 || row >= of_rows.rows) continue;
            const u64 at = u64(half) * of_rows.padded + row;
            args.sweep.weights[at] = weight;
            // Distances of a sweep are twice those of cosine.
            const double unit = args.kind == COSINE ? .5 : 1;
            if (rows_count) store<double, 2>(&args.sums[at * 2], {{threadIdx.x % 32 + r == 0 ? active * unit : 0, sum * unit}});
        }
        if (!rows_count) return;
        for (u32 k = threadIdx.x; k < row_pairs * 2 * TILE; k += S::threads) {
            const u32 pair = k / TILE, row = course.row_tile * TILE + k % TILE;
            // Thresholds beyond those of a class count nothing.
            if (shared.count[pair][k % TILE] && pair < args.sides.size_of_class(row)) atomicAdd(&args.count[args.start[row] + pair], shared.count[pair][k % TILE]);
        }
    }
};

constexpr u32 count_bytes[2] = {TERCET_BATCH_ALL_COUNT_SHARED};
// Rows of the largest class that a sweep takes: fewer where shared memory is short. S: the shape.
template <class S> constexpr int most_of = S::across == 1 && !S::is_long ? int(COMPARED) : int(TERCET_COMPARED_FEW);
// The shared memory of a sweep of batch_all.
template <class P, class S> struct SweepShared {
    typename Sweep<P, S>::Shared tiles;
    CountShared<most_of<S>> count;
};

// A block takes a row tile with every `splits`-th column tile. P: the precision. S: the shape. ROOT: the distance is Euclidean.
template <class P, class S, bool ROOT> DEVICE void sweep(const Args& args) {
    using Shared = SweepShared<P, S>;
    constexpr int MOST = most_of<S>;
    SHARED_DYNAMIC(Shared, s);
    static_assert(sizeof(s.tiles) == S::shared_bytes[P::planes - 1] && sizeof(s.count) == (MOST == COMPARED ? count_bytes[0] : count_bytes[1]), "src/constants.rs");
    if (!fits(args)) return;
    const Sides& sides = args.sides;
    const u32 which = args.sweep.which;
    const Batch &a = which ? sides.others : sides.anchors, &b = which ? sides.anchors : sides.others;
    const TileOf of_rows = args.tiles[which][blockIdx.x / args.sweep.splits];
    const bool ordinary = of_rows.size <= MOST && !of_rows.odd;
    const u32 taken = args.sweep.taken(b.padded / TILE);  // not after the sweep, through which more would be kept for it
    const Course course = args.sweep.course<S>(a, b, ordinary);
    SweptTriplets<S, ROOT, MOST> loss(args, course, a, b, s.count);
    Sweep<P, S>(s.tiles, course).run(loss);
    loss.end();
    s.count.left.write(args.sweep.left_of_block(), taken, S::threads, !ordinary);
}

// ---- what the sweep leaves ----

constexpr int HALF = TILE / 2;
static_assert(TILE_THREADS == 2 * TILE, "two threads a row");

// The shared memory of `left`. P: the precision.
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

// What the sweep has left of a block's tiles. P: the precision.
template <class P> DEVICE void left(const Args& args) {
    SHARED_DYNAMIC(Shared<P>, s);
    static_assert(has_size<P, Shared<P>>(TERCET_BATCH_ALL_SHARED), "src/constants.rs");
    SHARED(u32, any, 1);
    const Sides& sides = args.sides;
    const Batch &a = args.sweep.which ? sides.others : sides.anchors, &b = args.sweep.which ? sides.anchors : sides.others;
    const bool rows_count = args.sweep.which == 0, columns_count = args.sweep.which == 1 || (sides.itself && args.sweep.with_grad);
    const Swept& sweep = args.sweep;
    const u32 splits = sweep.splits, split = blockIdx.x % splits, row_base = blockIdx.x / splits * TILE;
    const u32 taken = sweep.taken(b.padded / TILE);
    const u8* const bytes = sweep.left_of_block();
    if (!sweep.has_left(fits(args) ? taken : 0, any[0])) return;
    // Two threads look at a row (or column) of the tile, every second distance each.
    const u32 mine = threadIdx.x / 2, half = threadIdx.x % 2;
    const Anchor row = rows_count ? Anchor::of(args, row_base + mine) : Anchor{0, 1, -MASKED};
    double active_distances = 0, distances = 0;
    float weights = 0;

    for (u32 k = threadIdx.x; k < COMPARED * TILE; k += TILE_THREADS) s.count[k / TILE][k % TILE] = 0;
    float* pushed = sweep.left_pushed + (i64(split) * a.padded + row_base) * a.dim;
    if (args.sweep.with_grad)
        for (u32 k = threadIdx.x; k < TILE * a.dim; k += TILE_THREADS) pushed[k] = 0.f;
    __syncthreads();  // the zeros are there: without a tile there is no other barrier

    for (u32 index = 0; index < taken; ++index) {
        const u32 byte = bytes[index];
        if (!byte) continue;
        const u32 base[2] = {row_base, (split + index * splits) * TILE};
        const u32 lowest = base[0] < base[1] ? base[0] : base[1], highest = (base[0] < base[1] ? base[1] : base[0]) + TILE;
        if (sides.itself && b.end[lowest] >= (highest < b.rows ? highest : b.rows)) continue;  // one class
        const auto keep = [&](int r, int c, float squared) {
            // Not squares, although they compare alike: t comes from a rounded root, and t^2 would not tell equals.
            const float d = args.kind == SQUARED ? squared : args.kind == EUCLIDEAN ? sqrtf(squared) : squared * .5f;
            s.d[r][c] = is_finite(d) ? d : MASKED;
        };
        distances_left<P>(s.buffers, a, b, args.sweep.which ? sides.other_first : sides.first, args.sweep.which ? sides.other_end : sides.end, base, byte, sweep.halves / splits, keep,
                          [&](int r, int c) { s.d[r][c] = MASKED; }, [&] { overflow(args); });
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
        if (!args.sweep.with_grad) {
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
        for (int q = 0; q < HALF; ++q) weights += s.weight[mine][2 * q + half];
        push(s.weight, s.y, a.y + i64(base[0]) * a.dim, b.y + i64(base[1]) * b.dim, b.dim, true, pushed);
    }
    // The sums of both threads of a row.
    active_distances = group_sum<2>(active_distances);
    distances = group_sum<2>(distances);
    weights = group_sum<2>(weights);
    if (row_base + mine >= a.rows) return;
    if (half == 0 && args.sweep.with_grad) sweep.left_weights[u64(split) * a.padded + row_base + mine] = weights;
    if (!rows_count) return;
    double* sums = args.sums + (u64(sweep.halves + split) * a.padded + row_base + mine) * 2;
    sums[half] = half ? distances : active_distances;
    if (row.size <= COMPARED && half == 0)
        for (u32 k = 0; k < row.size; ++k)
            if (s.count[k][mine]) atomicAdd(&args.count[row.start + k], s.count[k][mine]);
}

// Makes c_ap of the counts of an anchor of a large class, by a block: the k-th smallest threshold, counted from 0, is above those d_an that have at
// most k thresholds not above them.
DEVICE void rank(const Args& args, u32 row) {
    SHARED(u32, total, TILE_THREADS);
    const u32 size = args.sides.size_of_class(row);
    const u64 start = args.start[row];
    const u32 run = (size + TILE_THREADS - 1) / TILE_THREADS;
    const u32 begin = threadIdx.x * run < size ? threadIdx.x * run : size, end = begin + run < size ? begin + run : size;
    u32 sum = 0;
    for (u32 k = begin; k < end; ++k) sum += args.count[start + k];
    total[threadIdx.x] = sum;
    __syncthreads();  // the runs' sums are there
    u32 below = 0;
    for (u32 t = 0; t < threadIdx.x; ++t) below += total[t];
    for (u32 k = begin; k < end; ++k) {
        below += args.count[start + k];
        args.count[start + k] = below;
    }
    __syncthreads();  // all threads have read the runs' sums, and the counts are there
}
// c_ap of an anchor's k-th pair.
DEVICE u32 count_of(const Args& args, u32 row, u32 k) {
    const u64 at = args.start[row] + k;
    return args.count[args.sides.size_of_class(row) > COMPARED ? args.start[row] + args.place[at] : at];
}

// A block adds up the loss of the anchors of a row tile, once all blocks of the tile are done; the last block of all the batch's.
DEVICE void add_up(const Args& args, u32 row_tile) {
    const Sides& sides = args.sides;
    const u32 lane = threadIdx.x % 32, end = row_tile * TILE + TILE < sides.anchors.rows ? row_tile * TILE + TILE : sides.anchors.rows;
    const bool counted = fits(args);
    for (u32 row = row_tile * TILE; row < end && counted; ++row)
        if (sides.size_of_class(row) > COMPARED) rank(args, row);
    double sums[TERCET_STATS] = {0, 0, 0, 0, 0};  // loss, valid, active, d_ap, d_an
    for (u32 row = row_tile * TILE + threadIdx.x / 32; row < end; row += TILE_THREADS / 32) {
        const u32 size = sides.size_of_class(row), positives = sides.positives(row), negatives = sides.negatives(row);
        if (lane == 0) sums[1] += double(positives) * negatives;
        if (!counted) continue;
        for (u32 k = lane; k < size; k += 32) {
            const float d = args.distance[args.start[row] + k];
            const u32 count = count_of(args, row, k);
            if (count) sums[0] += double(threshold_of(args, d)) * count;
            sums[2] += count;
            sums[3] += double(d) * negatives;
        }
        for (u32 part = lane; part < args.sweep.halves + args.sweep.splits; part += 32) {
            if (!args.sweep.has_part(row, part)) continue;
            const double* of_row = args.sums + (u64(part) * sides.anchors.padded + row) * 2;
            sums[0] -= of_row[0];
            sums[4] += of_row[1] * positives;
        }
    }
    double total[TERCET_STATS];
    const u32 row_tiles = sides.anchors.padded / TILE;
    if (!sums_of_blocks<TILE_THREADS>(sums, args.partials, sides.anchors.survey->tickets + 2, row_tile, row_tiles, total)) return;
    const bool lost = sides.bad() || sides.anchors.survey->overflowed;
    const double over = args.mean == 0 ? 1 : args.mean == 1 ? total[2] : total[1];
    const double scale = over > 0 ? 1 / over : 1;
    if (args.loss) *args.loss = lost ? nan_value<float>() : float(total[0] > 0 ? total[0] * scale : 0);
    const double valid = total[1] > 0 ? total[1] : 1;
    write_stats(args.stats, total[1], total[2], total[3] / valid, total[4] / valid, lost, lost ? nan_value<double>() : scale, !counted);
}

// The last pass over tiles of a row tile's block. P: the precision.
template <class P> DEVICE void finish_tiles(const Args& args) {
    left<P>(args);
    if (args.sweep.which == 1) return;
    const u32 row_tile = blockIdx.x / args.sweep.splits;
    if (last_of(&args.tickets[row_tile], args.sweep.splits)) add_up(args, row_tile);
}

// ---- the gradient ----

// A warp writes the gradient of one of the sweep's rows: what it was pushed by, and its positives. As an anchor it is pulled to
// the other rows of its class, as a positive to the anchors of its class; in a batch by itself these are the same rows.
// T: the type of the caller's rows. P: the precision.
template <class T, class P> DEVICE void backward(const Args& args) {
    const Sides& sides = args.sides;
    const Batch &a = args.sweep.which ? sides.others : sides.anchors, &b = args.sweep.which ? sides.anchors : sides.others;
    const u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= a.rows) return;
    const float factor = *args.upstream * float(args.stats[4]);  // NaN if the batch is lost
    T* const grad = static_cast<T*>(args.grad) + i64(a.order[row]) * a.dim;
    if (!fits(args)) {
        for (u32 c = lane; c < a.dim; c += 32) narrow(grad[c], nan_value<float>());
        return;
    }
    const u32 first = (args.sweep.which ? sides.other_first : sides.first)[row];
    const u32 end = (args.sweep.which ? sides.other_end : sides.end)[row];
    const float *x = a.y + i64(row) * a.dim, inverse = a.inverse[row], sign = args.kind == SQUARED ? -2.f : -1.f;
    const Pushes<P> pushes(args.sweep, a, row);
    const auto pulled = [&](u32 c) {
        float sum = sign * pushes(c);
        for (u32 p = first; p < end; ++p) {
            // Active triplets of the pair with row p, in a batch by itself also of p's with this row. 0 for p = row.
            u32 count = 0;
            if (args.sweep.which == 0) count += count_of(args, row, p - first);
            if (args.sweep.which == 1 || sides.itself) count += count_of(args, p, row - sides.first[p]);
            if (!count) continue;
            const float d = args.distance[args.sweep.which ? args.start[p] + row - sides.first[p] : args.start[row] + p - first];
            const float slope = float(count) * (args.kind == SQUARED ? 2.f : args.kind == COSINE ? 1.f : d > 0.f ? 1.f / d : 0.f);
            const float y = b.y[i64(p) * b.dim + c];
            sum += args.kind == COSINE ? -slope * y : slope * (x[c] - y);
        }
        return sum;
    };
    if (!a.normalize) {
        for (u32 c = lane; c < a.dim; c += 32) narrow(grad[c], pulled(c) * factor);
        return;
    }
    float* const g = args.sweep.scratch + i64(row) * a.dim;
    float along = 0;
    for (u32 c = lane; c < a.dim; c += 32) {
        g[c] = pulled(c);
        along += g[c] * x[c];
    }
    along = inverse > 0.f ? group_sum<32>(along) : 0.f;
    for (u32 c = lane; c < a.dim; c += 32) narrow(grad[c], (g[c] - along * x[c]) * fabsf(inverse) * factor);
}

KERNEL(batch_all_left_highest, TILE_THREADS, const Args args) { finish_tiles<Split>(args); }
KERNEL(batch_all_left_half, TILE_THREADS, const Args args) { finish_tiles<Half>(args); }
SWEEPS(batch_all)
// The kernels for rows of type T.
#define OF_TYPE(dtype, T)                                                                                        \
    KERNEL(batch_all_pairs_##dtype, BATCH_THREADS, const Args args) { pairs<T>(args); }                          \
    KERNEL(batch_all_backward_##dtype##_highest, BATCH_THREADS, const Args args) { backward<T, Split>(args); }   \
    KERNEL(batch_all_backward_##dtype##_half, BATCH_THREADS, const Args args) { backward<T, Half>(args); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
