// The preparation of a batch for mined losses: of few short rows one launch, prepare; else up to four: order, of many rows
// runs and ranks, then survey, nearest, gather. And match, if the rows are compared with those of another batch.
//
// Translation changes no distance, but a Gram matrix of rows far from the origin cancels: rows of an untrained encoder, whose cosines
// are all near 1, as much as others. Rows, normalised if the loss does so, are moved by one of them, the nearest to the mean, if the mean is larger than the spread: by a row and not by the mean, so that
// differences of integers stay integers, and ties stay ties. `prepare` takes mean and spread of some rows alone, so that
// each block finds them for itself.
#include "batch.cuh"
#include "ranks.cuh"

// Visits this warp's share of the labels. All threads of the block must call.
// f(label, index): called for each of them.
template <class F> DEVICE void each_label(const i64* labels, u32 rows, F f) {
    SHARED(i64, tile, BATCH_THREADS);
    const u32 from = threadIdx.x / 32 * 32;
    for (u32 base = 0; base < rows; base += BATCH_THREADS) {
        __syncthreads();  // all threads are done with the tile before
        if (base + threadIdx.x < rows) tile[threadIdx.x] = labels[base + threadIdx.x];
        __syncthreads();  // the tile is there
        const u32 count = rows - base < from + 32 ? (rows - base > from ? rows - base - from : 0) : 32;
        for (u32 k = 0; k < count; ++k) f(tile[from + k], base + from + k);
    }
}

// What the launches after the first one count in and look at starts as zeros.
DEVICE void clear_zeros(const Batch& b) {
    for (u32 k = blockIdx.x * BATCH_THREADS + threadIdx.x; k < b.zeros_count; k += gridDim.x * BATCH_THREADS) b.zeros[k] = 0;
}
DEVICE void clear_survey(const Batch& b) {
    if (blockIdx.x == 0 && threadIdx.x == 0) *b.survey = Survey{};
    clear_zeros(b);
}

// Row i is at `rank` of class order, and its class begins at `first` and has `size` rows.
DEVICE void put_in_order(const Batch& b, u32 i, u32 rank, u32 first, u32 size) {
    b.order[rank] = i;
    b.position[i] = rank;
    b.first[rank] = first;
    b.end[rank] = first + size;
}

// rank_i = #{j : (label_j, j) < (label_i, i)}: the place of row i in class order, by looking at all labels.
KERNEL(batch_order, BATCH_THREADS, const Batch b) {
    clear_survey(b);
    const u32 i = blockIdx.x * RANKED + threadIdx.x % RANKED;
    const bool writes = threadIdx.x < RANKED && i < b.rows;
    if (!b.labels) {
        if (writes) put_in_order(b, i, i, i, 1);
        return;
    }
    const i64 mine = i < b.rows ? b.labels[i] : 0;
    u32 smaller = 0, equal = 0, before = 0;
    each_label(b.labels, b.rows, [&](i64 label, u32 j) {
        smaller += label < mine;
        equal += label == mine;
        before += label == mine && j < i;
    });
    smaller = sum_of_warps(smaller);
    equal = sum_of_warps(equal);
    before = sum_of_warps(before);
    if (writes) put_in_order(b, i, smaller + before, smaller, equal);
}

// The same for batches of many rows, in two launches.
KERNEL(batch_runs, BATCH_THREADS, const Batch b) {
    clear_survey(b);
    sort_run(b.rows, [&](u32 i) { return b.labels[i]; }, b.sorted, b.sorted_at);
}
KERNEL(batch_ranks, BATCH_THREADS, const Batch b) {
    rank_runs(b.rows, b.sorted, b.sorted_at,
              [&](u32 i, u32 smaller, u32 equal, u32 before) { put_in_order(b, i, smaller + before, smaller, equal); });
}

// Where the class of each row lies among the rows of the other side, by a thread a row: the first blocks take the anchors.
KERNEL(batch_match, BATCH_THREADS, const Sides s) {
    const u32 chunks = (s.anchors.rows + BATCH_THREADS - 1) / BATCH_THREADS;
    const bool of_anchors = blockIdx.x < chunks;
    const Batch& rows = of_anchors ? s.anchors : s.others;
    const Batch& among = of_anchors ? s.others : s.anchors;
    const u32 i = (of_anchors ? blockIdx.x : blockIdx.x - chunks) * BATCH_THREADS + threadIdx.x;
    if (i >= rows.rows) return;
    const i64 mine = rows.labels[rows.order[i]];
    // The first row in class order whose label is not smaller.
    u32 from = 0, to = among.rows;
    while (from < to) {
        const u32 middle = from + (to - from) / 2;
        if (among.labels[among.order[middle]] < mine) from = middle + 1;
        else to = middle;
    }
    const bool found = from < among.rows && among.labels[among.order[from]] == mine;
    (of_anchors ? s.first : s.other_first)[i] = from;
    (of_anchors ? s.end : s.other_end)[i] = found ? among.end[from] : from;
    if (!of_anchors) return;
    const u32 anchor = rows.order[i];
    // An anchor whose own row would lie outside of the reference set is not in it. A negative offset wraps around.
    const u64 own = s.own_kind == OWN_OFFSET ? u64(s.own_offset) + anchor : s.own_kind == OWN_ROWS ? u64(s.own_rows[anchor]) : ~u64(0);
    s.own[i] = own < among.rows ? among.position[own] : NONE;
}

template <class T> DEVICE float factor_of(const Batch& b, const T* x) {
    bool flat;
    return factor_of(b, x, flat);
}
// A block finds the factors of `count` rows. row_of(k): the k-th of them. All threads must call; behind a barrier they are there.
template <class F> DEVICE void find_factors(const Batch& b, u32 count, F row_of, float* factors) {
    for (u32 k = threadIdx.x / 32; k < count; k += BATCH_THREADS / 32) {
        const float factor = factor_of(b, row_of(k));
        if (threadIdx.x % 32 == 0) factors[k] = factor;
    }
}

// Rows that a block of `survey` sums up.
constexpr u32 SURVEYED = TERCET_SURVEYED;

// The sums of the columns over chunks of rows; the last block makes the mean of them. T: the type of the caller's rows.
template <class T> DEVICE void survey(const Batch& b) {
    SHARED(float, factors, SURVEYED);
    const u32 begin = blockIdx.x * SURVEYED, end = begin + SURVEYED < b.rows ? begin + SURVEYED : b.rows;
    const T* const x = static_cast<const T*>(b.x);
    find_factors(b, end - begin, [&](u32 k) { return x + (begin + k) * b.stride; }, factors);
    __syncthreads();  // the factors are there
    for (u32 c = threadIdx.x; c < b.dim; c += BATCH_THREADS) {
        double sum = 0;
#pragma unroll 8
        for (u32 i = begin; i < end; ++i) sum += double(rounded_product(widen(x[i * b.stride + c]), factors[i - begin]));
        b.sums[i64(blockIdx.x) * b.dim + c] = sum;
    }
    if (!last_block(&b.survey->tickets[0])) return;
    for (u32 c = threadIdx.x; c < b.dim; c += BATCH_THREADS) {
        double sum = 0;
#pragma unroll 8
        for (u32 chunk = 0; chunk < gridDim.x; ++chunk) sum += b.sums[i64(chunk) * b.dim + c];
        b.sums[i64(gridDim.x) * b.dim + c] = sum / b.rows;
    }
}

// The row nearest to the mean, and whether translating by it pays. T: the type of the caller's rows.
template <class T> DEVICE void nearest(const Batch& b) {
    const u32 chunks = (b.rows + SURVEYED - 1) / SURVEYED, lane = threadIdx.x % 32;
    const double* mean = b.sums + i64(chunks) * b.dim;
    double spread = 0;
    for (u32 i = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32; i < b.rows; i += gridDim.x * (BATCH_THREADS / 32)) {
        const T* x = static_cast<const T*>(b.x) + i * b.stride;
        const float factor = factor_of(b, x);
        double sum = 0;
        for (u32 c = lane; c < b.dim; c += 32) {
            const double e = double(rounded_product(widen(x[c]), factor)) - mean[c];
            sum += e * e;
        }
        sum = group_sum<32>(sum);
        if (lane == 0) {
            spread += sum;
            atomicMax(&b.survey->nearest, ~(u64(__float_as_uint(float(sum))) << 32 | i));
        }
    }
    double total;
    const bool last = grid_sum<BATCH_THREADS>(spread, b.partials, &b.survey->tickets[1], total);
    if (last) {
        double size = 0;
#pragma unroll 8
        for (u32 c = 0; c < b.dim; ++c) size += mean[c] * mean[c];
        b.survey->shifted = size * b.rows > total;
    }
}

// A warp prepares row `row` of class order, by original index `index`: y, planes, norm, terms, scale, inverse. 0 if it is not
// finite, else the exponent of its scale. shift: the elements of the row that all are translated by; null: none. T: the caller's type. P: the precision.
template <class T, class P> DEVICE u32 gather_row(const Batch& b, u32 row, u32 index, const T* shift) {
    const u32 lane = threadIdx.x % 32;
    const u32 panels = b.operand().panels(), width = panels * (PANEL_WIDTH / P::bytes);
    u8* const planes[2] = {b.planes, b.planes + (P::planes - 1) * PANEL};
    if (b.column_key && lane == 0) b.columns().clear(row, row < b.rows);
    const auto at = [&](u32 c) { return i64(in_planes<P::planes>(row, c * P::bytes, panels) / P::bytes); };
    if (row >= b.rows) {
        for (u32 c = lane; c < width; c += 32) P::encode(0.f, planes, at(c));
        if (lane == 0) store(&b.terms[row * 2], Pack<float, 2>{{__int_as_float(0x7f800000), -2.f}});
        if (row >= b.padded) return 1;
        for (u32 c = lane; c < b.dim; c += 32) b.y[i64(row) * b.dim + c] = 0.f;
        if (lane == 0) {
            b.norm[row] = 0.f;
            b.scale[row] = b.inverse[row] = 1.f;
        }
        return 1;
    }
    const T* x = static_cast<const T*>(b.x) + index * b.stride;
    bool flat;
    const float factor = factor_of(b, x, flat), of_shift = shift ? factor_of(b, shift) : 0.f;
    // Rows are translated for the product alone. Two rows near each other and far from the one that all are translated
    // by would lose digits of their difference.
    const auto given = [&](u32 c) { return rounded_product(widen(x[c]), factor); };
    const auto moved = [&](u32 c) { return shift ? given(c) - rounded_product(widen(shift[c]), of_shift) : given(c); };
    float largest = 0, squares = 0, unmoved = 0;
    bool finite = true;
    for (u32 c = lane; c < b.dim; c += 32) {
        const float y = moved(c);
        b.y[i64(row) * b.dim + c] = given(c);
        largest = fmaxf(largest, fabsf(y));
        squares += y * y;
        unmoved += given(c) * given(c);
        finite = finite && is_finite(y) && is_finite(widen(x[c]));
    }
    finite = __all_sync(0xffffffff, finite);
    largest = group_max<32>(largest);
    squares = group_sum<32>(squares);
    unmoved = group_sum<32>(unmoved);
    // The largest power of two up to `largest`, and at least the least normal number.
    const u32 exponent = __float_as_uint(largest) & 0x7f800000;
    const float scale = finite && exponent ? __uint_as_float(exponent) : 1.f / 0x1p126f;
    float rounded = 0;
    for (u32 c = lane; c < width; c += 32) {
        const float y = c < b.dim ? moved(c) : 0.f;
        const float kept = P::encode(finite ? y / scale : 0.f, planes, at(c)) * scale;
        rounded += kept * kept;
    }
    rounded = group_sum<32>(rounded);
    if (lane == 0) {
        // Of unit vectors |u - v|^2 is 2 (1 - u.v), wherever they are moved; without a move their norms are known. A row that is too
        // short to become one is made up for.
        const float of_planes = P::rounds ? rounded : squares;
        const float of_units = shift ? of_planes + (flat ? 1.f - unmoved : 0.f) : 1.f;
        // The planes of a row that is not finite hold zeros: its norm must tell, by NaN.
        const float norm = !finite ? nan_value<float>() : b.unit_norms ? of_units : of_planes;
        b.norm[row] = norm;
        b.scale[row] = scale;
        store(&b.terms[row * 2], Pack<float, 2>{{norm, -2.f * scale}});
        b.inverse[row] = flat ? -factor : factor;
    }
    return finite ? __float_as_uint(scale) >> 23 : 0;
}

// A warp prepares a row, once the launches before have found its place and the origin. T: the caller's type. P: the
// precision.
template <class T, class P> DEVICE void gather(const Batch& b) {
    const u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32;
    if (row >= b.held) return;
    const u32 origin = ~u32(b.origin_survey->nearest);
    const bool shifted = b.origin_survey->shifted;
    const T* shift = shifted ? static_cast<const T*>(b.origin) + origin * b.origin_stride : nullptr;
    const u32 scale = gather_row<T, P>(b, row, row < b.rows ? b.order[row] : 0, shift);
    if (threadIdx.x % 32 > 0 || row >= b.rows) return;
    if (scale == 0) atomicOr(&b.survey->bad, 1u);
    atomicMax(&b.survey->largest, scale);
}

// Rows whose mean and spread `prepare` takes for those of the batch.
constexpr u32 SAMPLED = 64, PREPARED_WIDTH = TERCET_PREPARED_WIDTH;

// The row nearest to the mean of SAMPLED rows, or of all if these are fewer, and whether translating by it pays. All threads
// of the block must call, and all blocks find the same. T: the type of the caller's rows.
template <class T> DEVICE u32 origin_of(const Batch& b, bool& shifted) {
    constexpr u32 PARTS = BATCH_THREADS / PREPARED_WIDTH, WARPS = BATCH_THREADS / 32;
    SHARED(float, factors, SAMPLED);
    SHARED(double, part, PARTS * PREPARED_WIDTH);
    SHARED(u64, nearest, WARPS);
    SHARED(double, spread, WARPS);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, samples = b.rows < SAMPLED ? b.rows : SAMPLED;
    const auto row_of = [&](u32 s) { return static_cast<const T*>(b.x) + i64(s * b.rows / samples) * b.stride; };
    find_factors(b, samples, row_of, factors);
    __syncthreads();  // the factors are there
    const auto given = [&](u32 s, u32 c) { return double(rounded_product(widen(row_of(s)[c]), factors[s])); };
    const u32 column = threadIdx.x % PREPARED_WIDTH;
    double sum = 0;
    if (column < b.dim)
#pragma unroll 8
        for (u32 s = threadIdx.x / PREPARED_WIDTH; s < samples; s += PARTS) sum += given(s, column);
    part[threadIdx.x] = sum;
    __syncthreads();  // the parts of the columns' sums are there
    double mean[PREPARED_WIDTH / 32], size = 0;
#pragma unroll
    for (u32 k = 0; k < PREPARED_WIDTH / 32; ++k) {
        mean[k] = 0;
        for (u32 p = 0; p < PARTS; ++p) mean[k] += part[p * PREPARED_WIDTH + k * 32 + lane];
        mean[k] /= samples;
        size += mean[k] * mean[k];
    }
    size = group_sum<32>(size);
    u64 least = ~u64(0);
    double total = 0;
    for (u32 s = warp; s < samples; s += WARPS) {
        double squares = 0;
#pragma unroll
        for (u32 k = 0; k < PREPARED_WIDTH / 32; ++k) {
            if (k * 32 + lane >= b.dim) break;
            const double e = given(s, k * 32 + lane) - mean[k];
            squares += e * e;
        }
        squares = group_sum<32>(squares);
        total += squares;
        const u64 key = u64(__float_as_uint(float(squares))) << 32 | (s * b.rows / samples);
        least = key < least ? key : least;
    }
    if (lane == 0) {
        nearest[warp] = least;
        spread[warp] = total;
    }
    __syncthreads();  // the warps' nearest rows are there
    total = 0;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
        least = nearest[w] < least ? nearest[w] : least;
        total += spread[w];
    }
    shifted = size * samples > total;
    return u32(least);
}

// All of the preparation in one launch, for few short rows: a warp finds a row's place by looking at all labels, and prepares
// it there. T: the caller's type. P: the precision.
template <class T, class P> DEVICE void prepare(const Batch& b) {
    constexpr u32 WARPS = BATCH_THREADS / 32;
    SHARED(u32, scales, WARPS);
    const u32 lane = threadIdx.x % 32, i = blockIdx.x * WARPS + threadIdx.x / 32;
    const bool itself = b.origin_survey == b.survey;
    bool shifted = false;
    u32 origin = 0;
    if (itself) origin = origin_of<T>(b, shifted);
    else {
        origin = ~u32(b.origin_survey->nearest);
        shifted = b.origin_survey->shifted;
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        Survey& survey = *b.survey;
        survey.nearest = ~u64(origin);
        survey.shifted = shifted;
        survey.bad = survey.overflowed = survey.largest = 0;
#pragma unroll
        for (int k = 0; k < 4; ++k) survey.tickets[k] = 0;
        for (u32 k = gridDim.x; k < TERCET_PREPARED_ROWS / WARPS; ++k)
            reinterpret_cast<u8*>(survey.bad_of)[k] = reinterpret_cast<u8*>(survey.largest_of)[k] = 0;
    }
    clear_zeros(b);
    u32 row = i;
    if (i < b.rows) {
        u32 smaller = i, equal = 1, before = 0;
        if (b.labels) {
            const i64 mine = b.labels[i];
            smaller = equal = 0;
            for (u32 j = lane; j < b.rows; j += 32) {
                const i64 label = b.labels[j];
                smaller += label < mine;
                equal += label == mine;
                before += label == mine && j < i;
            }
            smaller = group_sum<32>(smaller);
            equal = group_sum<32>(equal);
            before = group_sum<32>(before);
        }
        row = smaller + before;
        if (lane == 0) put_in_order(b, i, row, smaller, equal);
    }
    const T* shift = shifted ? static_cast<const T*>(b.origin) + origin * b.origin_stride : nullptr;
    // Rows beyond the batch have no say: they count as the smallest.
    const u32 mine = i >= b.held ? 1 : gather_row<T, P>(b, row, i, shift);
    if (lane == 0) scales[threadIdx.x / 32] = mine;
    __syncthreads();  // the warps' findings are there
    if (threadIdx.x > 0) return;
    bool bad = false;
    u32 largest = 1;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
        bad = bad || scales[w] == 0;
        largest = scales[w] > largest ? scales[w] : largest;
    }
    reinterpret_cast<u8*>(b.survey->bad_of)[blockIdx.x] = bad;
    reinterpret_cast<u8*>(b.survey->largest_of)[blockIdx.x] = largest;
}

// The kernels for rows of type T. Plain is what the other precisions are checked against.
#define OF_TYPE(dtype, T)                                                                         \
    KERNEL(batch_survey_##dtype, BATCH_THREADS, const Batch b) { survey<T>(b); }                  \
    KERNEL(batch_nearest_##dtype, BATCH_THREADS, const Batch b) { nearest<T>(b); }                \
    KERNEL(batch_gather_##dtype##_highest, BATCH_THREADS, const Batch b) { gather<T, Split>(b); } \
    KERNEL(batch_gather_##dtype##_half, BATCH_THREADS, const Batch b) { gather<T, Half>(b); }     \
    KERNEL(batch_prepare_##dtype##_highest, BATCH_THREADS, const Batch b) { prepare<T, Split>(b); } \
    KERNEL(batch_prepare_##dtype##_half, BATCH_THREADS, const Batch b) { prepare<T, Half>(b); }   \
    KERNEL(batch_gather_##dtype##_plain, BATCH_THREADS, const Batch b) { gather<T, Plain>(b); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
