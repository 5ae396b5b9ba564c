// The preparation of a batch for mined losses, in up to four launches: order, survey, nearest, gather; and match, if
// the rows are compared with those of another batch.
//
// Translation changes no Euclidean distance, but a Gram matrix of rows far from the origin cancels. Rows are moved by
// one of them, the nearest to the mean, if the mean is larger than the spread: by a row and not by the mean, so that
// differences of integers stay integers, and ties stay ties.
#include "batch.cuh"

// Rows that a block ranks, one a lane of each warp; every warp looks at its share of the labels.
constexpr u32 RANKED = TERCET_RANKED;
static_assert(BATCH_THREADS % RANKED == 0, "whole warps");

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
// The sum of x over the threads of all warps that have this thread's lane. All threads of the block must call.
DEVICE u32 sum_of_warps(u32 x) {
    SHARED(u32, part, BATCH_THREADS);
    __syncthreads();  // all threads have read the parts of the call before
    part[threadIdx.x] = x;
    __syncthreads();  // the parts are there
    u32 sum = 0;
    for (u32 t = threadIdx.x % 32; t < BATCH_THREADS; t += 32) sum += part[t];
    return sum;
}

// rank_i = #{j : (label_j, j) < (label_i, i)}: the place of row i in class order.
KERNEL(batch_order, BATCH_THREADS, const Batch b) {
    const u32 i = blockIdx.x * RANKED + threadIdx.x % RANKED;
    const bool writes = threadIdx.x < RANKED && i < b.rows;
    if (!b.labels) {
        if (writes) {
            b.order[i] = b.position[i] = i;
            b.first[i] = i;
            b.end[i] = i + 1;
        }
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
    if (!writes) return;
    const u32 rank = smaller + before;
    b.order[rank] = i;
    b.position[i] = rank;
    b.first[rank] = smaller;
    b.end[rank] = smaller + equal;
}

// Where the class of each row lies among the rows of the other side: the first blocks take the anchors.
KERNEL(batch_match, BATCH_THREADS, const Sides s) {
    const u32 chunks = (s.anchors.rows + RANKED - 1) / RANKED;
    const bool of_anchors = blockIdx.x < chunks;
    const Batch& rows = of_anchors ? s.anchors : s.others;
    const Batch& among = of_anchors ? s.others : s.anchors;
    const u32 i = (of_anchors ? blockIdx.x : blockIdx.x - chunks) * RANKED + threadIdx.x % RANKED;
    const i64 mine = i < rows.rows ? rows.labels[rows.order[i]] : 0;
    u32 smaller = 0, equal = 0;
    each_label(among.labels, among.rows, [&](i64 label, u32) {
        smaller += label < mine;
        equal += label == mine;
    });
    smaller = sum_of_warps(smaller);
    equal = sum_of_warps(equal);
    if (threadIdx.x >= RANKED || i >= rows.rows) return;
    (of_anchors ? s.first : s.other_first)[i] = smaller;
    (of_anchors ? s.end : s.other_end)[i] = smaller + equal;
    if (!of_anchors) return;
    const u32 anchor = rows.order[i];
    // An anchor whose own row would lie outside of the reference set is not in it. A negative offset wraps around.
    const u64 own = s.own_kind == OWN_OFFSET ? u64(s.own_offset) + anchor : s.own_kind == OWN_ROWS ? u64(s.own_rows[anchor]) : ~u64(0);
    s.own[i] = own < among.rows ? among.position[own] : NONE;
}

// Rows that a block of `survey` sums up.
constexpr u32 SURVEYED = TERCET_SURVEYED;

// The sums of the columns over chunks of rows; the last block makes the mean of them. T: the type of the caller's rows.
template <class T> DEVICE void survey(const Batch& b) {
    const u32 begin = blockIdx.x * SURVEYED, end = begin + SURVEYED < b.rows ? begin + SURVEYED : b.rows;
    for (u32 c = threadIdx.x; c < b.dim; c += BATCH_THREADS) {
        double sum = 0;
#pragma unroll 8
        for (u32 i = begin; i < end; ++i) sum += double(widen(static_cast<const T*>(b.x)[i * b.stride + c]));
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
        double sum = 0;
        for (u32 c = lane; c < b.dim; c += 32) {
            const double e = double(widen(static_cast<const T*>(b.x)[i * b.stride + c])) - mean[c];
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

// A warp prepares a row, in class order: y, planes, norm, scale, inverse. T: the caller's type. P: the precision.
template <class T, class P> DEVICE void gather(const Batch& b) {
    const u32 row = blockIdx.x * (BATCH_THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= b.held) return;
    const u32 panels = b.operand().panels(), width = panels * (PANEL_WIDTH / P::bytes);
    u8* const planes[2] = {b.planes, b.planes + (P::planes - 1) * PANEL};
    const auto at = [&](u32 c) { return i64(in_planes<P::planes>(row, c * P::bytes, panels) / P::bytes); };
    if (row >= b.rows) {
        for (u32 c = lane; c < width; c += 32) P::encode(0.f, planes, at(c));
        if (lane == 0) store(&b.terms[row * 2], Pack<float, 2>{{__int_as_float(0x7f800000), -2.f}});
        if (row >= b.padded) return;
        for (u32 c = lane; c < b.dim; c += 32) b.y[i64(row) * b.dim + c] = 0.f;
        if (lane == 0) {
            b.norm[row] = 0.f;
            b.scale[row] = b.inverse[row] = 1.f;
        }
        return;
    }
    const T* x = static_cast<const T*>(b.x) + b.order[row] * b.stride;
    const u32 origin = ~u32(b.origin_survey->nearest);
    const bool shifted = b.centre && b.origin_survey->shifted;
    const T* shift = shifted ? static_cast<const T*>(b.origin) + origin * b.origin_stride : nullptr;
    float factor = 1.f;
    bool flat = false;
    if (b.normalize) {
        float squares = 0;
        for (u32 c = lane; c < b.dim; c += 32) squares += widen(x[c]) * widen(x[c]);
        const float norm = sqrtf(group_sum<32>(squares));
        flat = norm < float(TERCET_MIN_NORM);
        factor = is_finite(norm) ? 1.f / (flat ? float(TERCET_MIN_NORM) : norm) : nan_value<float>();
    }
    // Rows are translated for the product alone. Two rows near each other and far from the one that all are translated
    // by would lose digits of their difference.
    const auto given = [&](u32 c) { return rounded_product(widen(x[c]), factor); };
    const auto moved = [&](u32 c) { return shift ? widen(x[c]) - widen(shift[c]) : given(c); };
    float largest = 0, squares = 0;
    bool finite = true;
    for (u32 c = lane; c < b.dim; c += 32) {
        const float y = moved(c);
        b.y[i64(row) * b.dim + c] = given(c);
        largest = fmaxf(largest, fabsf(y));
        squares += y * y;
        finite = finite && is_finite(y) && is_finite(widen(x[c]));
    }
    finite = __all_sync(0xffffffff, finite);
    largest = group_max<32>(largest);
    squares = group_sum<32>(squares);
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
        // The planes of a row that is not finite hold zeros: its norm must tell, by NaN.
        const float norm = !finite ? nan_value<float>() : b.unit_norms ? 1.f : P::rounds ? rounded : squares;
        b.norm[row] = norm;
        b.scale[row] = scale;
        store(&b.terms[row * 2], Pack<float, 2>{{norm, -2.f * scale}});
        b.inverse[row] = flat ? -factor : factor;
        if (!finite) atomicOr(&b.survey->bad, 1u);
    }
}

// The kernels for rows of type T. Plain is what the other precisions are checked against.
#define OF_TYPE(dtype, T)                                                                         \
    KERNEL(batch_survey_##dtype, BATCH_THREADS, const Batch b) { survey<T>(b); }                  \
    KERNEL(batch_nearest_##dtype, BATCH_THREADS, const Batch b) { nearest<T>(b); }                \
    KERNEL(batch_gather_##dtype##_highest, BATCH_THREADS, const Batch b) { gather<T, Split>(b); } \
    KERNEL(batch_gather_##dtype##_half, BATCH_THREADS, const Batch b) { gather<T, Half>(b); }     \
    KERNEL(batch_gather_##dtype##_plain, BATCH_THREADS, const Batch b) { gather<T, Plain>(b); }
OF_TYPE(f32, float)
OF_TYPE(f16, f16)
OF_TYPE(bf16, bf16)
