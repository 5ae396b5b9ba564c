// top_k:  for each query the k nearest of many rows, which come in chunks.
//
// widen:   rows of fewer bits as f32: the queries', or a chunk's.
// apart:   how far the rows of a chunk are from the exact ones at most; only with exact rows.
// limits:  for each query what the numbers of the sweep must not be above: none that is can belong to one of its k nearest.
// sweep:   products of tiles; where a product is not above the query's limit, the row goes on the query's list.
// merge:   a block per query computes the distances of the listed rows by difference, and sorts them in with the k nearest of
//          the chunks before. So no distance carries an error of the products, and no result depends on an order.
// A query whose list has no room, or that has no k neighbours yet, looks at all rows of the chunk.
#include "batch.cuh"
#include "strip.cuh"

// The same layout as `Args` in src/top_k/cuda.rs. Rows have no classes: class order is the given one.
struct Args {
    Batch queries, rows;    // prepared; the rows are those of a chunk
    const float* exact;     // the exact rows of the chunk; null: there are none
    i64 exact_stride;
    const i64* own_rows;    // for OWN_ROWS: which row each query is
    i64 own_offset;         // for OWN_OFFSET
    const void* stored;     // what `widen` reads, and
    i64 stored_stride;
    const float* scales;    // of rows of integers
    float* wide;            // writes, contiguous
    u64* keys;              // [queries, k]: distance and row, ascending; what is left is NOTHING
    u32* count;             // [queries]: rows on the list, or ALL
    u32* list;              // [queries, room]: rows of the chunk
    float* limit;           // [queries]
    u32* apart;             // the bits of a distance >= 0
    float* distances;       // [queries, k]; null: another chunk follows
    i64* indices;
    u32 own_kind;           // an Own
    u32 kind;               // a Distance
    u32 k, room, splits;
    u32 first;              // the index of the chunk's first row
    u32 count_of_wide;      // rows that `widen` writes
    float error;            // of a product, over the sum of both squared norms
    float rounded;          // how far a row may be from what its planes hold, over its norm
    float relative;         // how far a number may be from the exact one, over itself
    float absolute;         // and besides; of integers over the row's scale
    u32 padding;            // to the end of 8 bytes: the host's struct has no gaps
};

constexpr u32 ALL = 0xffffffff;
constexpr u64 NOTHING = ~u64(0);
constexpr u32 SORTED = TERCET_TOP_K_SORTED, WARPS = BATCH_THREADS / 32;

// A distance in the order of its bits, and back.
DEVICE u32 ordered(float d) {
    const u32 bits = __float_as_uint(d);
    return bits >> 31 ? ~bits : bits | 0x80000000;
}
DEVICE float distance_of(u64 key) {
    const u32 bits = u32(key >> 32);
    return __uint_as_float(bits >> 31 ? bits & 0x7fffffff : ~bits);
}

// Integers of 8 bits.
struct i8 { signed char value; };
DEVICE float widen(i8 x) { return float(x.value); }

// A warp writes a row. T: the type that it is stored in.
template <class T> DEVICE void widen_rows(const Args& args) {
    const u32 row = blockIdx.x * WARPS + threadIdx.x / 32, dim = args.queries.dim;
    if (row >= args.count_of_wide) return;
    const T* const from = static_cast<const T*>(args.stored) + row * args.stored_stride;
    const float scale = args.scales ? args.scales[row] : 1.f;
    for (u32 c = threadIdx.x % 32; c < dim; c += 32) args.wide[i64(row) * dim + c] = rounded_product(widen(from[c]), scale);
}

// What a row is multiplied by to be normalised, by a warp; negative: it is flat. 1 without normalisation.
DEVICE float inverse_of(const Batch& b, const float* x) {
    bool flat;
    const float factor = factor_of(b, x, flat);
    return flat ? -factor : factor;
}

// A warp takes a row. Of x and y at e from each other x / |x| and y / |y| are at 2 e / (|x| + |y|) at most; rows below MIN_NORM
// are not divided by their norms. Products tell nothing of a row that is not finite where it is stored: it goes on every list.
DEVICE void apart(const Args& args) {
    const Batch& b = args.rows;
    const u32 row = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= b.rows) return;
    const float* const x = static_cast<const float*>(b.x) + row * b.stride;
    float squares = 0;
    for (u32 c = lane; c < b.dim; c += 32) squares += x[c] * x[c];
    const float norm = sqrtf(group_sum<32>(squares));
    const float absolute = args.scales ? fabsf(args.scales[row]) * args.absolute : args.absolute;
    float e = (args.relative * norm + absolute * sqrtf(float(b.dim))) * 1.002f;
    const bool tells = is_finite(b.norm[row]) && is_finite(e);
    if (b.normalize) {
        const float both = norm + norm - e;
        e = both > 4.f * float(TERCET_MIN_NORM) && e < norm ? fminf(2.f * e / both * 1.002f, 2.f) : 2.f;
    }
    if (lane > 0) return;
    if (tells) atomicMax(args.apart, __float_as_uint(e));
    else store(&b.terms[row * 2], Pack<float, 2>{{-__int_as_float(0x7f800000), 0.f}});
}

// A thread takes a query. Its numbers are `norm_j - 2 x.y_j`, squared distances less its own norm. They are off by
// args.error (norm + norm_j), and a row at distance d is no longer than sqrt(norm) + d, so that norm_j <= 2 (norm + d^2).
DEVICE void limits(const Args& args) {
    const u32 i = blockIdx.x * BATCH_THREADS + threadIdx.x;
    if (i >= args.queries.rows) return;
    const float norm = args.queries.norm[i];
    const u64 key = args.keys[u64(i) * args.k + args.k - 1];
    const float d = key == NOTHING ? __int_as_float(0x7f800000) : distance_of(key);
    // Different squares may have the same root.
    const float above = d * (1.f + 0x1p-21f);
    const float squared = args.kind == SQUARED ? d : args.kind == EUCLIDEAN ? above * above : fmaxf(2.f * d, 0.f);
    const float apart = args.exact ? __uint_as_float(*args.apart) : 0.f;
    // Cosine: the planes hold unit vectors, moved.
    const float length = sqrtf(args.queries.unit_norms ? fmaxf(norm, 1.f) : norm), root = sqrtf(squared);
    const float reach = root + apart + args.rounded * (2.f * length + 2.f * (root + apart));
    const float limit = reach * reach * (1.f + 0x1p-20f) - norm + fmaf(args.error, fmaf(3.f, length * length, 2.f * reach * reach), 0x1p-120f);
    // A query that is not finite has no neighbour.
    const bool bad = norm != norm, all = !bad && !is_finite(limit);
    args.limit[i] = bad || all ? nan_value<float>() : limit;  // above which everything is
    args.count[i] = all ? ALL : 0;
}

// The rows that may be nearer than the k-th. Each block takes a block of queries and every `splits`-th tile of rows.
// P: the precision. S: the shape.
template <class P, class S> DEVICE void sweep(const Args& args) {
    using Strip = ::Strip<P, S>;
    using Shared = typename Strip::Shared;
    SHARED_DYNAMIC(Shared, shared);
    const Batch &a = args.queries, &b = args.rows;
    const u32 block = blockIdx.x / args.splits, split = blockIdx.x % args.splits;
    const u32 base = block * S::rows, tiles = (b.rows + S::columns - 1) / S::columns;
    float scale[Strip::ROWS], limit[Strip::ROWS];
    const auto read_terms = [&] {
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) {
            const u32 row = base + Strip::row_of(r);
            scale[r] = row < a.rows ? a.scale[row] : 1.f;
            limit[r] = row < a.rows ? args.limit[row] : nan_value<float>();
        }
    };
    if (S::resident) read_terms();
    Strip strip(shared, a.operand(), b.operand(), b.terms, block, split, args.splits, tiles);
#pragma unroll 1
    for (u32 tile = split; tile < tiles; tile += args.splits) {
        strip.take();
        if (!S::resident) read_terms();
        float least[Strip::ROWS];
        const auto number = [&](int r, int q, const Pack<float, 4>& terms) {
            return fmaf(strip.product(r, q) * terms.v[q % 2 * 2 + 1], scale[r], terms.v[q % 2 * 2]);
        };
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) least[r] = __int_as_float(0x7f800000);
#pragma unroll
        for (int j = 0; j < Strip::COLUMN_FRAGMENTS; ++j) {
            const Pack<float, 4> terms = strip.terms_of(j);
#pragma unroll
            for (int r = 0; r < Strip::ROWS; ++r)
#pragma unroll
                for (int e = 0; e < 2; ++e) least[r] = fminf(least[r], number(r, 2 * j + e, terms));
        }
        bool near = false;
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) near = near || least[r] <= limit[r];
        // Few tiles have such rows. A vote tells the compiler, and who counts instructions, that all threads agree.
        if (!__any_sync(0xffffffff, near)) continue;
#pragma unroll
        for (int r = 0; r < Strip::ROWS; ++r) {
            const u32 row = base + Strip::row_of(r);
#pragma unroll
            for (int q = 0; q < Strip::COLUMNS; ++q) {
                if (!(number(r, q, strip.terms_of(q / 2)) <= limit[r])) continue;
                const u32 at = atomicAdd(&args.count[row], 1u);
                if (at < args.room) args.list[u64(row) * args.room + at] = tile * S::columns + Strip::column_of(Strip::lane(), q);
            }
        }
    }
}

// The key of row j of the chunk for a query, by a warp; NOTHING if it is no neighbour. x: the query. own: which row it is.
DEVICE u64 key_of(const Args& args, const Row<float>& x, u32 j, i64 own) {
    const Batch& b = args.rows;
    const u32 index = args.first + j;
    if (own == i64(index)) return NOTHING;
    Row<float> y = original_row<float>(b, j);
    if (args.exact) {
        y.x = args.exact + j * args.exact_stride;
        y.inverse = inverse_of(b, y.x);
    }
    const float d = direct_distance(x, y, b.dim, args.kind);
    bool finite = d == d;
    if (!is_finite(d))
        for (u32 c = threadIdx.x % 32; c < b.dim; c += 32) finite = finite && is_finite(y(c));
    if (!__all_sync(0xffffffff, finite)) return NOTHING;
    return u64(ordered(d)) << 32 | index;
}

DEVICE void merge(const Args& args) {
    SHARED(u64, keys, SORTED);
    const Batch &a = args.queries, &b = args.rows;
    const u32 i = blockIdx.x, k = args.k;
    u64* const kept = args.keys + u64(i) * k;
    const bool bad = a.norm[i] != a.norm[i];
    const Row<float> x = original_row<float>(a, i);
    const i64 own = args.own_kind == OWN_OFFSET ? i64(u64(i) + u64(args.own_offset)) : args.own_kind == OWN_ROWS ? args.own_rows[i] : -1;
    const u32 counted = args.count[i];
    const bool all = counted > args.room;
    const u32 count = bad ? 0 : all ? b.rows : counted;
    for (u32 r = threadIdx.x; r < k; r += BATCH_THREADS) keys[r] = kept[r];
#pragma unroll 1
    for (u32 from = 0; from < count; from += args.room) {
        const u32 some = count - from < args.room ? count - from : args.room;
        __syncthreads();  // the keys that were sorted before are where they belong
#pragma unroll 1
        for (u32 c = threadIdx.x / 32; c < some; c += WARPS) {
            const u64 key = key_of(args, x, all ? from + c : args.list[u64(i) * args.room + from + c], own);
            if (threadIdx.x % 32 == 0) keys[k + c] = key;
        }
        __syncthreads();  // the keys are there
        sort(k + some, [&](u32 first, u32 second) {
            if (keys[second] < keys[first]) exchange(keys[first], keys[second]);
        });
    }
    for (u32 r = threadIdx.x; r < k; r += BATCH_THREADS) {
        const u64 key = keys[r];
        kept[r] = key;
        if (!args.distances) continue;
        const float none = bad ? nan_value<float>() : __int_as_float(0x7f800000);
        args.distances[u64(i) * k + r] = key == NOTHING ? none : distance_of(key);
        args.indices[u64(i) * k + r] = key == NOTHING ? -1 : i64(u32(key));
    }
}

// A thread takes a key: before the first chunk nothing is kept. Without any chunk it writes the results too.
DEVICE void begin(const Args& args) {
    const u64 at = u64(blockIdx.x) * BATCH_THREADS + threadIdx.x;
    if (at >= u64(args.queries.rows) * args.k) return;
    args.keys[at] = NOTHING;
    if (!args.distances) return;
    const float norm = args.queries.norm[at / args.k];
    args.distances[at] = norm != norm ? norm : __int_as_float(0x7f800000);
    args.indices[at] = -1;
}

KERNEL(top_k_widen_f16, BATCH_THREADS, const Args args) { widen_rows<f16>(args); }
KERNEL(top_k_widen_bf16, BATCH_THREADS, const Args args) { widen_rows<bf16>(args); }
KERNEL(top_k_widen_int8, BATCH_THREADS, const Args args) { widen_rows<i8>(args); }
KERNEL(top_k_begin, BATCH_THREADS, const Args args) { begin(args); }
KERNEL(top_k_apart, BATCH_THREADS, const Args args) { apart(args); }
KERNEL(top_k_limits, BATCH_THREADS, const Args args) { limits(args); }
KERNEL(top_k_merge, BATCH_THREADS, const Args args) { merge(args); }

// The blocks of a shape that a multiprocessor holds.
constexpr int BLOCKS[] = {TERCET_STRIP_BLOCKS};
#define SWEEP(mode, P, shape, resident, SHAPE, blocks)                                                              \
    IF_TAKEN(TERCET_STRIP_##mode##_##shape,                                                                         \
    KERNEL_OF(blocks, top_k_sweep_##mode##_##shape, (StripShape<resident, SHAPE>::threads), const Args args) {      \
        sweep<P, StripShape<resident, SHAPE>>(args);                                                                \
    })
SWEEP(highest, Split, wide, true, TERCET_STRIP_WIDE_SPLIT, BLOCKS[0])
SWEEP(highest, Split, wide_long, false, TERCET_STRIP_WIDE_LONG, BLOCKS[0])
SWEEP(highest, Split, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])
SWEEP(highest, Split, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])
SWEEP(half, Half, wide, true, TERCET_STRIP_WIDE_SINGLE, BLOCKS[0])
SWEEP(half, Half, wide_long, false, TERCET_STRIP_WIDE_LONG, BLOCKS[0])
SWEEP(half, Half, narrow, true, TERCET_STRIP_NARROW, BLOCKS[1])
SWEEP(half, Half, narrow_long, false, TERCET_STRIP_NARROW, BLOCKS[1])
