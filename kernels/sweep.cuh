// The engine of losses whose gradient is a second product,  sum_j w_ij (z_i - z_j),  with a weight for each pair of rows.
// A block of threads owns TILE rows, and takes one tile of columns after another:
//   products of its rows with the tile's columns, on tensor cores, in registers;
//   weights, which a loss makes of them (`Loss` below): f16 in one plane or in two, in registers still;
//   sums, the weights times the tile's columns, on tensor cores again. Only the rows' sums are written, at the end.
// sum_j w_ij z_i is the sum of the weights times z_i: whoever writes the gradient adds it. Rows z are those of the planes
// (batch.cuh): a translation changes no difference. Since a sum of two products replaces differences, it is for pairs that
// are not near each other; a loss leaves others to a kernel of its own.
//
// P, everywhere below: the precision, with numbers of 16 bits. S: a SweepShape. L: a loss, as a struct with
//   planes                                1 or 2: the f16 numbers that a weight is the sum of
//   void look(tile)                       before a tile's products: reads what takes a while to come
//   void bring(tile)                      starts copies of what the loss needs of the tile's columns: they are part of a group
//   bool weigh(tile, products, w)         makes weights of this warp's part of a tile; false: all are 0, and w is not read.
//                                         What `bring` brought is there
//   float scale()                         what sums of weights times columns are multiplied by at the end
#pragma once
#include "tile.cuh"

// The shape of a block: ACROSS warps share 16 rows and take TILE / ACROSS columns each. LONG: rows do not stay in shared
// memory, and sums do not stay in registers. GROUP_BYTES: of weights that shared memory then holds at a time.
template <bool LONG, int ACROSS, int GROUP_BYTES> struct SweepShape {
    static constexpr bool is_long = LONG;
    static constexpr int across = ACROSS, columns = TILE / ACROSS, threads = TILE / 16 * ACROSS * 32, group_bytes = GROUP_BYTES;
    // Sums that blocks write for the same rows: warps that share rows have sums of their own, unless weights are shared.
    static constexpr int parts = LONG ? 1 : ACROSS;
    // A warp's products, as fragments of 8 columns; and its weights, as fragments of 16.
    static constexpr int COLUMN_FRAGMENTS = columns / 8, STEPS = columns / 16;

    // The first row, and the first column, of this thread's warp in the tile.
    static DEVICE u32 warp_row() { return threadIdx.x / 32 / ACROSS * 16; }
    static DEVICE u32 warp_column() { return threadIdx.x / 32 % ACROSS * columns; }
    // The row, within the tile, of this thread's products with e < 2; those with e >= 2 are of the eighth row further.
    static DEVICE u32 row() { return warp_row() + threadIdx.x % 32 / 4; }
    // The first column, within the tile, of this thread's fragment j; that of products with odd e is the next one.
    static DEVICE u32 column(int j) { return warp_column() + j * 8 + threadIdx.x % 4 * 2; }
};

// The shapes: wide where a multiprocessor has shared memory for two such blocks, else narrow; long for rows of more panels.
// blocks: that a multiprocessor holds. shared_bytes: of a sweep's own shared memory, for products of one plane and of two.
struct SweepWide : SweepShape<false, 1, 0> {
    static constexpr int blocks = 2;
    static constexpr u32 shared_bytes[2] = {TERCET_SWEEP_SHORT_SHARED};
};
struct SweepNarrow : SweepShape<false, 2, 0> {
    static constexpr int blocks = 1;
    static constexpr u32 shared_bytes[2] = {TERCET_SWEEP_SHORT_SHARED};
};
struct SweepWideLong : SweepShape<true, 1, TERCET_SWEEP_GROUP_WIDE> {
    static constexpr int blocks = 2;
    static constexpr u32 shared_bytes[2] = {TERCET_SWEEP_WIDE_LONG_SHARED};
};
struct SweepNarrowLong : SweepShape<true, 2, TERCET_SWEEP_GROUP_NARROW> {
    static constexpr int blocks = 1;
    static constexpr u32 shared_bytes[2] = {TERCET_SWEEP_NARROW_LONG_SHARED};
};

// A warp's products: number e of fragment j is of row `row() + e / 2 * 8` and column `column(j) + e % 2`.
template <class S> using Products = float[S::COLUMN_FRAGMENTS][4];
// A warp's weights of PLANES planes, as fragments of rows.
template <class S, int PLANES> using Weights = u32[PLANES][S::STEPS][4];

// Which tiles a block takes, and what of them.
struct Course {
    Operand rows, columns;
    u32 row_tile, first, step, end;
    float* sums;                 // [TILE, width] of this block's rows and part: sum_j w_ij z_j; null: not wanted
    u64 part_stride;             // numbers from one part to the next

    // Numbers of a row of the sums.
    DEVICE u32 width() const { return rows.width(); }
};

// Copies of a run of BYTES bytes by a block of THREADS threads: a warp takes a part of it, so that all copies of a thread are
// within 4 KB. `place` is added to the addresses that `start` takes.
template <int BYTES, int THREADS> struct Copies {
    static constexpr int OF_WARP = BYTES / (THREADS / 32);
    static_assert(OF_WARP % 512 == 0 && OF_WARP <= 4096, "512 bytes for a warp at a time");
    // The middle of what this thread copies, which its copies are counted from.
    static DEVICE u32 place() { return threadIdx.x / 32 * OF_WARP + threadIdx.x % 32 * 16 + OF_WARP / 2; }
    // Starts the copies.
    template <int AT = 0> static DEVICE void start(SharedAddress to, const u8* from) {
        if constexpr (AT < OF_WARP) {
            copy_async16_at<AT - OF_WARP / 2>(to, from);
            start<AT + 512>(to, from);
        }
    }
};

// sum += a b, or with `first` sum = a b, of fragment n of b. The compiler must know `first`.
DEVICE void add_product(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[4], int n, bool first) {
    if (first) mma_f16_m16n8k16_first(sum, a, b[n * 2], b[n * 2 + 1]);
    else mma_f16_m16n8k16(sum, a, b[n * 2], b[n * 2 + 1]);
}
// The same of all planes: hi lo, lo hi, and hi hi, the small ones first.
template <int PLANES> DEVICE void add_planes(float (&sum)[4], const u32 (&a)[PLANES][4], const u32 (&b)[PLANES][4], int n, bool first) {
    if constexpr (PLANES == 2) {
        add_product(sum, a[0], b[1], n, first);
        add_product(sum, a[1], b[0], n, false);
        add_product(sum, a[0], b[0], n, false);
    } else add_product(sum, a[0], b[0], n, first);
}

// sum += w b, or with `first` sum = w b, of fragment n of b: weights of W planes times columns of B planes, the small products
// first, and without lo lo. The compiler must know `first`.
template <int W, int B> DEVICE void add_weighted(float (&sum)[4], const u32 (&w)[W][4], const u32 (&b)[B][4], int n, bool first) {
    if constexpr (W == 2) add_product(sum, w[1], b[0], n, first);
    if constexpr (B == 2) add_product(sum, w[0], b[1], n, first && W == 1);
    add_product(sum, w[0], b[0], n, first && W == 1 && B == 1);
}

// Adds the products of a panel to a warp's. a_piece, b_piece: this lane's first piece of the warp's rows and columns. The
// pieces of the next 32 bytes are two further in the order of the row, so their places differ in bits 5 and 6.
// FIRST: there are no products before.
template <bool FIRST, class P, class S> DEVICE void multiply_panel(Products<S>& products, SharedAddress a_piece, SharedAddress b_piece) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
        u32 a[P::planes][4];
#pragma unroll
        for (int p = 0; p < P::planes; ++p) load_matrix_x4(a[p], (a_piece ^ SharedAddress(k * 32)) + p * PANEL);
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; j += 2) {
            u32 b[P::planes][4];
#pragma unroll
            for (int p = 0; p < P::planes; ++p) load_matrix_x4(b[p], (b_piece ^ SharedAddress(k * 32)) + (p * PANEL + j * 8 * PANEL_WIDTH));
#pragma unroll
            for (int n = 0; n < 2; ++n) add_planes(products[j + n], a, b, n, FIRST && k == 0);
        }
    }
}

// This lane's first piece, as an offset in a panel: of 16 rows from `row` on, as rows of a product; of columns from `column`
// on, as its columns; and of columns as what weights are multiplied by.
DEVICE u32 piece_of_rows(u32 row) { return in_panel(row + threadIdx.x % 16, threadIdx.x % 32 / 16); }
DEVICE u32 piece_of_columns(u32 column) { return in_panel(column + threadIdx.x % 32 / 16 * 8 + threadIdx.x % 8, threadIdx.x / 8 % 2); }
DEVICE u32 piece_of_weighted(u32 column) { return in_panel(column + threadIdx.x % 16, threadIdx.x % 32 / 16); }

// ---- short rows: all stays where it is ----

// Rows of up to RESIDENT panels. A tile has two panels; of three places in shared memory two are of the tile that is taken,
// and the first panel of the next one is on its way into the third, the second into that of this tile's first.
template <class P, class S> struct ShortSweep {
    static constexpr int UNIT = P::planes * PANEL, RESIDENT = TERCET_SWEEP_RESIDENT, PLACES = 3;
    static_assert(RESIDENT == 2, "a tile's first panel and its second");
    using Panel = Copies<UNIT, S::threads>;
    struct Shared {
        alignas(128) u8 rows[RESIDENT][UNIT];
        u8 ring[PLACES][UNIT];
    };

    Shared& shared;
    const Course& course;
    u32 panels, place;    // of a row; the place of the taken tile's first panel
    const u8* next;       // this thread's place in the panel that is brought next
    SharedAddress ring, a_at, b_at, weighted_at;  // of what it brings, and this lane's first pieces of what is multiplied
    float x[RESIDENT][8][4];

    DEVICE ShortSweep(Shared& shared, const Course& course) : shared(shared), course(course), panels(course.rows.panels()), place(0) {
        const u8* rows = course.rows.planes + u64(course.row_tile) * panels * UNIT + Panel::place();
        for (u32 panel = 0; panel < panels; ++panel) Panel::start(shared_address(shared.rows[panel]) + Panel::place(), rows + panel * UNIT);
        next = course.columns.planes + u64(course.first) * panels * UNIT + Panel::place();
        ring = kept(shared_address(shared.ring) + Panel::place());
        a_at = kept(shared_address(shared.rows) + piece_of_rows(S::warp_row()));
        b_at = kept(shared_address(shared.ring) + piece_of_columns(S::warp_column()));
        weighted_at = kept(shared_address(shared.ring) + piece_of_weighted(S::warp_column()));
#pragma unroll
        for (int panel = 0; panel < RESIDENT; ++panel)
#pragma unroll
            for (int n = 0; n < 8; ++n)
#pragma unroll
                for (int e = 0; e < 4; ++e) x[panel][n][e] = 0.f;
    }
    static DEVICE u32 after(u32 place, u32 steps) { return place + steps < PLACES ? place + steps : place + steps - PLACES; }

    // Starts to bring a panel of a tile, if there is one, and ends a group of copies in either case. With the second panel comes
    // all else that is needed of the columns.
    template <class L> DEVICE void give(L& loss, u32 tile, u32 panel, u32 to) {
        if (tile < course.end) {
            if (panel < panels) Panel::start(ring + to * UNIT, next);
            if (panel == 1) loss.bring(tile);
        }
        copy_async_commit();
        next += panel == 0 ? u64(panels - 1) * UNIT : (u64(course.step - 1) * panels + 1) * UNIT;
    }
    // Adds the weights times the columns' panel at a place to sums.
    template <int W> DEVICE void push(const Weights<S, W>& w, u32 place, float (&x)[8][4]) {
        const SharedAddress at = kept(weighted_at + place * UNIT);
#pragma unroll
        for (int n = 0; n < 8; n += 4) {
            // Tensor cores truncate what they add: a tile is summed up there, and tiles are added on CUDA cores.
            float sum[4][4];
#pragma unroll
            for (int k = 0; k < S::STEPS; ++k) {
                u32 a[W][4];
#pragma unroll
                for (int p = 0; p < W; ++p)
#pragma unroll
                    for (int i = 0; i < 4; ++i) a[p][i] = w[p][k][i];
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    u32 b[P::planes][4];
#pragma unroll
                    for (int p = 0; p < P::planes; ++p)
                        load_matrix_x4_transposed(b[p], (at ^ SharedAddress((n / 2 + half) * 32)) + (p * PANEL + k * 16 * PANEL_WIDTH));
#pragma unroll
                    for (int i = 0; i < 2; ++i) add_weighted(sum[half * 2 + i], a, b, i, k == 0);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e) x[n + i][e] += sum[i][e];
        }
    }
    // Takes all tiles, and writes the sums. All threads of the block must call.
    template <class L> DEVICE void run(L& loss) {
        give(loss, course.first, 0, 0);
        give(loss, course.first, 1, 1);
#pragma unroll 1
        for (u32 tile = course.first; tile < course.end; tile += course.step) {
            copy_async_wait<1>();
            __syncthreads();  // the first panel is here, and all threads are done with the tile before
            give(loss, tile + course.step, 0, after(place, 2));
            loss.look(tile);
            Products<S> products;
            multiply_panel<true, P, S>(products, a_at, kept(b_at + place * UNIT));
            copy_async_wait<1>();
            __syncthreads();  // the second panel is here, and what else is needed of the columns
            const u32 second = after(place, 1);
            if (panels > 1) multiply_panel<false, P, S>(products, a_at + UNIT, kept(b_at + second * UNIT));
            Weights<S, L::planes> w;
            const bool weighs = loss.weigh(tile, products, w);
            if (weighs) push(w, place, x[0]);
            __syncthreads();  // all threads are done with the first panel, and with what else came of the columns
            give(loss, tile + course.step, 1, place);
            if (weighs && panels > 1) push(w, second, x[1]);
            place = after(place, 2);
        }
        copy_async_wait<0>();
        __syncthreads();  // all threads are done with the last tile
        if (!course.sums) return;
        const float scale = loss.scale();
        float* to = course.sums + S::warp_column() / S::columns * course.part_stride + S::row() * course.width() + threadIdx.x % 4 * 2;
#pragma unroll
        for (int panel = 0; panel < RESIDENT; ++panel) {
            if (panel >= panels) break;
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                const float(&sum)[4] = x[panel][n];
                store<float, 2>(to + panel * 64 + n * 8, {{sum[0] * scale, sum[1] * scale}});
                store<float, 2>(to + panel * 64 + n * 8 + 8 * course.width(), {{sum[2] * scale, sum[3] * scale}});
            }
        }
    }
};

// ---- long rows: products panel by panel, and sums in memory ----

// Rows of any length. The weights of a group of tiles lie in shared memory; then the columns are brought again, two panels at a
// time, and the sums of a group are added to those in memory.
template <class P, class S> struct LongSweep {
    static constexpr int UNIT = P::planes * PANEL, STAGES = 2;
    // Rows of a warp's sums, as fragments: warps take a panel of the columns each.
    static constexpr int ROW_FRAGMENTS = 2 / S::across;
    using Panel = Copies<UNIT, S::threads>;
    // Tensor cores truncate what they add: they sum up 256 numbers at most, and those sums are added up on CUDA cores.
    static constexpr int SHORT = 256 * P::bytes / PANEL_WIDTH;
    struct Shared {
        alignas(128) u8 ring[STAGES][2][UNIT];
        u8 weights[S::group_bytes];
    };

    Shared& shared;
    const Course& course;
    u32 panels, tiles;                      // of a row; of this block
    SharedAddress a_at, b_at, weighted_at, weights_at;  // this lane's first piece, as a place in a panel
    SharedAddress stage;                                // the stage that is read next
    const u8* next[2];                                  // this thread's place in what is brought next: two panels

    DEVICE LongSweep(Shared& shared, const Course& course)
        : shared(shared), course(course), panels(course.rows.panels()),
          tiles(course.first < course.end ? (course.end - course.first + course.step - 1) / course.step : 0) {
        a_at = kept(piece_of_rows(S::warp_row()));
        b_at = kept(piece_of_columns(S::warp_column()));
        weighted_at = kept(piece_of_weighted(0) + of_panel() * UNIT);
        weights_at = kept(shared_address(shared.weights) + piece_of_rows(of_rows()));
        stage = kept(shared_address(shared.ring));
        next[0] = rows();
        next[1] = columns(0);
    }
    // Which of two panels this warp sums up, and the first of its rows.
    static DEVICE u32 of_panel() { return threadIdx.x / 32 % 2; }
    static DEVICE u32 of_rows() { return threadIdx.x / 64 * (ROW_FRAGMENTS * 16); }
    // This thread's place in the block's rows, and in the columns of its tile number `index`; in the first beyond the last.
    DEVICE const u8* rows() const { return course.rows.planes + u64(course.row_tile) * panels * UNIT + Panel::place(); }
    DEVICE const u8* columns(u32 index) const {
        return course.columns.planes + u64(course.first + (index < tiles ? index : 0) * course.step) * panels * UNIT + Panel::place();
    }

    // Starts to bring what comes next into a stage: after the last one it is something, which nobody reads.
    DEVICE void give(SharedAddress to) {
        const SharedAddress place = to + Panel::place();
        Panel::start(place, next[0]);
        Panel::start(place + UNIT, next[1]);
        copy_async_commit();
    }
    // The next stage, which is here then; what `next` says is on its way to the other one.
    DEVICE SharedAddress next_stage() {
        copy_async_wait<0>();
        __syncthreads();  // this stage is here, and all threads are done with the other one
        const SharedAddress first = shared_address(shared.ring), at = stage;
        stage = at == first ? first + 2 * UNIT : first;
        give(stage);
        return at;
    }
    // Writes the weights of a tile of the group to shared memory; zeros if there are none.
    template <int W> DEVICE void keep(const Weights<S, W>& w, bool weighs, u32 tile) {
#pragma unroll
        for (int p = 0; p < W; ++p)
#pragma unroll
            for (int k = 0; k < S::STEPS; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const u32 at = in_panel(S::row() + i % 2 * 8, S::warp_column() / 8 + k * 2 + i / 2) + threadIdx.x % 4 * 4;
                    *reinterpret_cast<u32*>(shared.weights + (tile * W + p) * PANEL + at) = weighs ? w[p][k][i] : 0;
                }
    }
    // Takes all tiles, and writes the sums. All threads of the block must call.
    template <class L> DEVICE void run(L& loss) {
        constexpr int GROUP = S::group_bytes / (L::planes * PANEL);
        static_assert(GROUP > 0 && GROUP * 64 <= 256, "a group is summed up by tensor cores");
        if (course.sums)
            for (u32 k = threadIdx.x; k < TILE * course.width(); k += S::threads) course.sums[k] = 0.f;
        give(stage);
#pragma unroll 1
        for (u32 group = 0; group < tiles; group += GROUP) {
            const u32 of_group = tiles - group < GROUP ? tiles - group : GROUP;
#pragma unroll 1
            for (u32 g = 0; g < of_group; ++g) {
                const u32 tile = course.first + (group + g) * course.step;
                loss.look(tile);
                loss.bring(tile);  // part of the next group of copies
                // What follows the last panels of the tile: those of the next one, or the group's first columns once more.
                const bool is_last = course.sums && g + 1 == of_group;
                const u8* const after[2] = {is_last ? columns(group) : rows(), is_last ? columns(group) + UNIT : columns(group + g + 1)};
                Products<S> products, before;
                each_product([&](int j, int e) { products[j][e] = before[j][e] = 0.f; });
#pragma unroll 1
                for (u32 panel = 0; panel < panels; ++panel) {
                    const bool more = panel + 1 < panels;
                    next[0] = more ? next[0] + UNIT : after[0];
                    next[1] = more ? next[1] + UNIT : after[1];
                    const SharedAddress at = next_stage();
                    multiply_panel<false, P, S>(products, kept(at + a_at), kept(at + UNIT + b_at));
                    if (panel % SHORT == SHORT - 1)
                        each_product([&](int j, int e) {
                            before[j][e] += products[j][e];
                            products[j][e] = 0.f;
                        });
                }
                each_product([&](int j, int e) { products[j][e] += before[j][e]; });
                Weights<S, L::planes> w;
                const bool weighs = loss.weigh(tile, products, w);
                if (course.sums) keep(w, weighs, g);
                __syncthreads();  // all threads are done with what came of the columns
            }
            if (course.sums) add_group(loss, group, of_group);
        }
        copy_async_wait<0>();
        __syncthreads();  // all threads are done with the last tile
    }
    // Adds a group's weights times its columns to the sums in memory.
    template <class L> DEVICE void add_group(L& loss, u32 group, u32 of_group) {
        const u64 step = u64(course.step) * panels * UNIT;
        const float scale = loss.scale();
        const u8* chunk_at = columns(group);
        float* to = course.sums + (of_rows() + threadIdx.x % 32 / 4) * course.width() + of_panel() * 64 + threadIdx.x % 4 * 2;
#pragma unroll 1
        for (u32 panel = 0; panel < panels; panel += 2, chunk_at += 2 * UNIT, to += 128) {
            float x[ROW_FRAGMENTS][8][4];
#pragma unroll
            for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                for (int n = 0; n < 8; ++n)
#pragma unroll
                    for (int e = 0; e < 4; ++e) x[i][n][e] = 0.f;
            const bool more = panel + 2 < panels;
            // What follows the last tile's columns: the next two panels, or one twice; or the next group's first products.
            const u8* const after[2] = {more ? chunk_at + 2 * UNIT : rows(), more ? chunk_at + (panel + 3 < panels ? 3 : 2) * UNIT : columns(group + of_group)};
            SharedAddress weights = weights_at;
#pragma unroll 1
            for (u32 g = 0; g < of_group; ++g, weights += L::planes * PANEL) {
                const bool follows = g + 1 < of_group;
                next[0] = follows ? next[0] + step : after[0];
                next[1] = follows ? next[1] + step : after[1];
                const SharedAddress at = next_stage() + weighted_at;
#pragma unroll
                for (int k = 0; k < TILE / 16; ++k) {
                    u32 a[ROW_FRAGMENTS][L::planes][4];
#pragma unroll
                    for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                        for (int p = 0; p < L::planes; ++p)
                            load_matrix_x4(a[i][p], (weights ^ SharedAddress(k * 32)) + (p * PANEL + i * 16 * PANEL_WIDTH));
#pragma unroll
                    for (int n = 0; n < 8; n += 2) {
                        u32 b[P::planes][4];
#pragma unroll
                        for (int p = 0; p < P::planes; ++p)
                            load_matrix_x4_transposed(b[p], (at ^ SharedAddress(n * 16)) + (p * PANEL + k * 16 * PANEL_WIDTH));
#pragma unroll
                        for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                            for (int m = 0; m < 2; ++m) add_weighted(x[i][n + m], a[i], b, m, false);
                    }
                }
            }
            // Of a last panel without a second one, there is nothing to write of the second.
            if (__any_sync(0xffffffff, panel + of_panel() >= panels)) continue;
#pragma unroll
            for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float* const row = to + (i * 16 + half * 8) * course.width();
                    Pack<float, 2> sum[8];
#pragma unroll
                    for (int n = 0; n < 8; ++n) sum[n] = load<float, 2>(row + n * 8);
#pragma unroll
                    for (int n = 0; n < 8; ++n) {
#pragma unroll
                        for (int e = 0; e < 2; ++e) sum[n].v[e] = fmaf(x[i][n][half * 2 + e], scale, sum[n].v[e]);
                        store<float, 2>(row + n * 8, sum[n]);
                    }
                }
        }
    }
    // f(j, e): called for each of a warp's products.
    template <class F> static DEVICE void each_product(F f) {
#pragma unroll
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) f(j, e);
    }
};

template <class P, class S, bool LONG> struct SweepOf;
template <class P, class S> struct SweepOf<P, S, false> { using Type = ShortSweep<P, S>; };
template <class P, class S> struct SweepOf<P, S, true> { using Type = LongSweep<P, S>; };
// The sweep of a shape: ShortSweep or LongSweep.
template <class P, class S> using Sweep = typename SweepOf<P, S, S::is_long>::Type;
