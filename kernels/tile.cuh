// The Gram engine of mined losses: TILE x TILE products of rows of two prepared batches (batch.cuh), on tensor cores.
// Rows come as planes of bytes, SLAB bytes at a time by cp.async into a ring of buffers; each of the four warps of a
// block computes a quarter of the tile. A slab is read by ldmatrix as 16-byte pieces: 32 bytes of a row, 16 numbers, are
// one mma's worth.
#pragma once
#include "platform.cuh"

#ifndef TERCET_TILE
#error "TERCET_TILE and the like come from src/constants.rs"
#endif
#define TILE_THREADS TERCET_TILE_THREADS

constexpr int TILE = TERCET_TILE, SLAB = TERCET_SLAB, STAGES = TERCET_STAGES, QUARTER = TILE / 2;
constexpr int ROW_FRAGMENTS = QUARTER / 16, COLUMN_FRAGMENTS = QUARTER / 8;
static_assert(TILE % 32 == 0 && SLAB == 64, "the swizzle below is for 64 bytes a row");

// ---- precisions: how numbers are stored in planes, and multiplied ----
//
// The template parameter P of the engine is one of them: Split, Half or Plain.
//
// planes, bytes   the number of planes, and the bytes of a number in one
// rounds          whether `encode` rounds, so that the norm must be of what it has stored
// encode          stores x as number `at` of each plane `to`, and returns what the product sees of it
// decode          number `at` of the planes `of`, as the product sees it; of tensor cores' precisions

// f32 as hi + lo, both f16: 22 bits of each number relative to its row's largest, which is 1 to 2; that lo may be
// subnormal costs nothing more. The product hi hi + hi lo + lo hi leaves out 2^-22 of it: the error of an f32
// computation. One accumulator takes all three, the small ones first: separate ones would cost one of the three blocks
// on a multiprocessor.
struct Split {
    static constexpr int planes = 2, bytes = 2;
    static constexpr bool rounds = false;
    static DEVICE float encode(float x, u8* const (&to)[2], i64 at) {
        f16 hi, lo;
        narrow(hi, x);
        narrow(lo, x - widen(hi));
        reinterpret_cast<f16*>(to[0])[at] = hi;
        reinterpret_cast<f16*>(to[1])[at] = lo;
        return x;
    }
    static DEVICE float decode(const u8* const (&of)[2], i64 at) {
        return widen(reinterpret_cast<const f16*>(of[0])[at]) + widen(reinterpret_cast<const f16*>(of[1])[at]);
    }
};

// f16 alone: 11 significant bits of each number, as TF32 has, in half of the bytes and at twice the rate. In a row whose
// largest is 1 to 2 a number is off by 2^-11 of itself or, below 2^-14, by 2^-25.
struct Half {
    static constexpr int planes = 1, bytes = 2;
    static constexpr bool rounds = true;
    static DEVICE float encode(float x, u8* const (&to)[2], i64 at) {
        f16 y;
        narrow(y, x);
        reinterpret_cast<f16*>(to[0])[at] = y;
        return widen(y);
    }
    static DEVICE float decode(const u8* const (&of)[2], i64 at) { return widen(reinterpret_cast<const f16*>(of[0])[at]); }
};

// d += the products of fragment i of rows and fragment n of columns, of all planes: hi lo + lo hi + hi hi, the small ones
// first. a, b: the fragments of each plane.
template <int PLANES, int FRAGMENTS> DEVICE void multiply_planes(float (&d)[4], const u32 (&a)[PLANES][FRAGMENTS][4], int i, const u32 (&b)[PLANES][4], int n) {
    if constexpr (PLANES == 2) {
        mma_f16_m16n8k16(d, a[0][i], b[1][n * 2], b[1][n * 2 + 1]);
        mma_f16_m16n8k16(d, a[1][i], b[0][n * 2], b[0][n * 2 + 1]);
    }
    mma_f16_m16n8k16(d, a[0][i], b[0][n * 2], b[0][n * 2 + 1]);
}

// f32 on CUDA cores, to check the other precisions against: no tensor core, no rounding of what is multiplied.
struct Plain {
    static constexpr int planes = 1, bytes = 4;
    static constexpr bool rounds = false;
    static DEVICE float encode(float x, u8* const (&to)[2], i64 at) {
        reinterpret_cast<float*>(to[0])[at] = x;
        return x;
    }
};
template <class P> constexpr bool is_plain = false;
template <> constexpr bool is_plain<Plain> = true;

// ---- the tile ----

// Planes lie in memory in panels of TILE rows x PANEL_WIDTH bytes, in the order [tile of rows][panel][plane]: what a block
// brings at a time is contiguous. A row's 16-byte pieces change places in its panel, so that the eight rows of an 8x8
// matrix are in different banks: piece p of row r stands at p ^ r % 8.
constexpr int PANEL_WIDTH = TERCET_PANEL_WIDTH, PANEL = TILE * PANEL_WIDTH;
static_assert(PANEL_WIDTH == 128 && PANEL_WIDTH == 2 * SLAB, "eight pieces a row, which are two slabs");

// Where 16-byte piece `piece` of row `row` lies in a panel, in bytes.
DEVICE u32 in_panel(u32 row, u32 piece) { return row * PANEL_WIDTH + ((piece ^ row % 8) << 4); }

// Where byte `byte` of row `row` lies in the first plane; the other plane's is PANEL bytes further. PLANES: how many there are.
template <int PLANES> DEVICE u64 in_planes(u32 row, u32 byte, u32 panels) {
    return (u64(row / TILE) * panels + byte / PANEL_WIDTH) * (PLANES * PANEL) + in_panel(row % TILE, byte % PANEL_WIDTH / 16) + byte % 16;
}

// A prepared batch as the engine sees it: planes of `slabs` x SLAB bytes a row, with rows up to whole tiles.
struct Operand {
    const u8* planes;
    u32 slabs;

    DEVICE u32 panels() const { return (slabs + 1) / 2; }
    // Numbers of 16 bits of a row, up to whole panels.
    DEVICE u32 width() const { return panels() * (PANEL_WIDTH / 2); }
};

// Bytes of a block of shared memory that holds one plane's slab of TILE rows.
constexpr int BLOCK = TILE * SLAB;

// Where 16-byte piece `piece` of row `row` lies in a block, in bytes: two rows fill the 32 banks, and pieces change
// places so that the eight rows of an 8x8 matrix are in different ones.
DEVICE int swizzled(int row, int piece) { return row * SLAB + ((piece ^ (row >> 1 & 3)) << 4); }

// The 16-byte pieces of a block that this thread brings: their offsets in the panel's first slab, and in the block.
// PLANES: how many planes there are.
template <int PLANES> struct Pieces {
    static constexpr int PIECES = SLAB / 16, COUNT = TILE * PIECES / TILE_THREADS;
    static_assert(TILE * PIECES % TILE_THREADS == 0, "as many for each thread");
    u32 from[COUNT], to[COUNT];

    DEVICE Pieces() {
#pragma unroll
        for (int k = 0; k < COUNT; ++k) {
            const int i = k * TILE_THREADS + threadIdx.x, row = i / PIECES, piece = i % PIECES;
            from[k] = in_panel(row, piece);
            to[k] = swizzled(row, piece);
        }
    }
    // Starts to bring slab `slab` of plane `plane` of the TILE rows from `first` on; in flight until a wait.
    DEVICE void bring(u8* block, const Operand& of, int plane, u32 first, u32 slab) const {
        const u8* panel = of.planes + ((u64(first / TILE) * of.panels() + slab / 2) * PLANES + plane) * PANEL;
        // The second slab's pieces are 4 to 7: the third bit of a place, 64 bytes, is the other one.
        const u32 second = slab % 2 * SLAB;
#pragma unroll
        for (int k = 0; k < COUNT; ++k) copy_async16(block + to[k], panel + (from[k] ^ second), true);
    }
};

// The shared memory that GramTile::run takes: [stage][side][plane]. P: the precision.
template <class P> struct TileBuffers {
    alignas(128) u8 bytes[STAGES][2][P::planes][BLOCK];
};
// Whether a struct has the size that the host gives: one number for products of one plane, and one of two.
template <class P, class S> constexpr bool has_size(u32 one, u32 two) { return sizeof(S) == (P::planes == 1 ? one : two); }

// A tile of TILE x TILE products of the rows of two operands, in the registers of the block's TILE_THREADS threads.
// P: the precision.
template <class P> struct GramTile {
    float sum[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];

    // Starts to bring slab `slab` of both sides into stage `stage`, as one group of copies.
    static DEVICE void fetch(TileBuffers<P>& buffers, const Pieces<P::planes>& pieces, int stage, const Operand (&side)[2], const u32 (&first)[2], u32 slab) {
#pragma unroll
        for (int s = 0; s < 2; ++s)
#pragma unroll
            for (int p = 0; p < P::planes; ++p) pieces.bring(buffers.bytes[stage][s][p], side[s], p, first[s], slab);
        copy_async_commit();
    }

    // Computes the products of TILE rows of side 0, from first[0] on, with TILE rows of side 1, from first[1] on. All
    // threads of the block must call; the buffers are free again when it returns.
    DEVICE void run(TileBuffers<P>& buffers, const Operand (&side)[2], const u32 (&first)[2]) {
        static_assert(has_size<P, TileBuffers<P>>(TERCET_TILE_SHARED), "src/constants.rs");
        const u32 slabs = side[0].slabs;
        const Pieces<P::planes> pieces;
#pragma unroll
        for (u32 s = 0; s < STAGES - 1; ++s) {
            if (s < slabs) fetch(buffers, pieces, s, side, first, s);
            else copy_async_commit();
        }
        multiply_slabs(slabs, [&](u32 slab, const u8* (&rows)[P::planes], const u8* (&columns)[P::planes]) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();  // this slab is here, and all threads are done with the one whose stage is filled next
            if (slab + STAGES - 1 < slabs) fetch(buffers, pieces, (slab + STAGES - 1) % STAGES, side, first, slab + STAGES - 1);
            else copy_async_commit();
#pragma unroll
            for (int p = 0; p < P::planes; ++p) {
                rows[p] = buffers.bytes[slab % STAGES][0][p];
                columns[p] = buffers.bytes[slab % STAGES][1][p];
            }
        });
        copy_async_wait<0>();
        __syncthreads();  // all threads are done with the last slab
    }

    // Computes the products of `slabs` slabs.
    // ready(slab, rows, columns): waits for a slab, and sets rows and columns to its blocks, by plane.
    template <class F> DEVICE void multiply_slabs(u32 slabs, F ready) {
        // Tensor cores truncate what they add: they sum up 256 numbers at most, and those sums are added up here.
        constexpr int SHORT = 256 * P::bytes / SLAB;
        float before[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];
        clear(sum);
        clear(before);
        for (u32 slab = 0; slab < slabs; ++slab) {
            const u8 *rows[P::planes], *columns[P::planes];
            ready(slab, rows, columns);
            if constexpr (is_plain<P>) multiply_plainly(rows, columns, sum);
            else multiply(rows, columns, sum);
            if (slab % SHORT == SHORT - 1) {
                add(before, sum);
                clear(sum);
            }
        }
        if (slabs >= SHORT) add(sum, before);
    }

    // Hands out the products that this thread holds.
    // f(slot, row, column, product): called for each, row and column within the tile; true if `later` is wanted.
    // later(slot, row, column): called afterwards, for rare work: compiled once, and not for every product.
    template <class F, class G> DEVICE void each(F f, G later) const {
        static_assert(ROW_FRAGMENTS * COLUMN_FRAGMENTS * 4 <= 64, "one bit for each number");
        u64 marked = 0;
#pragma unroll
        for (int k = 0; k < ROW_FRAGMENTS * COLUMN_FRAGMENTS * 4; ++k) {
            const int j = k % COLUMN_FRAGMENTS, e = k / COLUMN_FRAGMENTS % 4, i = k / COLUMN_FRAGMENTS / 4;
            if (f(slot_of(k), row_of(slot_of(k)), column_of(k), sum[i][j][e])) marked |= u64(1) << k;
        }
#pragma unroll 1
        for (int k = 0; marked; ++k, marked >>= 1)
            if (marked & 1) later(slot_of(k), row_of(slot_of(k)), column_of(k));
    }
    // The same for work that a warp does together.
    // f(slot, row, column, product): called for each product; true if `later` is wanted.
    // later(row, column, mine): called afterwards by the whole warp for each of its products that wants it; `mine` is true in the
    // thread that holds it.
    template <class F, class G> DEVICE void each_by_warps(F f, G later) const {
        u64 marked = 0;
#pragma unroll
        for (int k = 0; k < ROW_FRAGMENTS * COLUMN_FRAGMENTS * 4; ++k) {
            const int j = k % COLUMN_FRAGMENTS, e = k / COLUMN_FRAGMENTS % 4, i = k / COLUMN_FRAGMENTS / 4;
            if (f(slot_of(k), row_of(slot_of(k)), column_of(k), sum[i][j][e])) marked |= u64(1) << k;
        }
        const u32 lane = threadIdx.x % 32;
        while (const u32 with_some = __ballot_sync(0xffffffff, marked != 0)) {
            const int owner = __ffs(int(with_some)) - 1;
            const bool mine = lane == u32(owner);
            const int k = mine ? lowest_bit(marked) : 0;
            const int row = __shfl_sync(0xffffffff, row_of(slot_of(k)), owner), column = __shfl_sync(0xffffffff, column_of(k), owner);
            later(row, column, mine);
            if (mine) marked &= marked - 1;
        }
    }
    // The place of the lowest bit of a number that is not 0.
    static DEVICE int lowest_bit(u64 x) { return u32(x) ? __ffs(int(u32(x))) - 1 : __ffs(int(u32(x >> 32))) + 31; }
    // How many rows this thread holds products of; their slots are 0 .. ROWS - 1.
    static constexpr int ROWS = ROW_FRAGMENTS * 2;
    // The slot of this thread's product k.
    static DEVICE int slot_of(int k) { return k / COLUMN_FRAGMENTS / 4 * 2 + k / COLUMN_FRAGMENTS % 4 / 2; }
    // The column, within the tile, of this thread's product k.
    static DEVICE int column_of(int k) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        return warp % 2 * QUARTER + k % COLUMN_FRAGMENTS * 8 + lane % 4 * 2 + k / COLUMN_FRAGMENTS % 2;
    }
    // The row, within the tile, of a slot of this thread.
    static DEVICE int row_of(int slot) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        return warp / 2 * QUARTER + slot / 2 * 16 + slot % 2 * 8 + lane / 4;
    }

    static DEVICE void clear(float (&x)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4]) {
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) x[i][j][e] = 0.f;
    }
    static DEVICE void add(float (&to)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4], const float (&x)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4]) {
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) to[i][j][e] += x[i][j][e];
    }
    // Adds the products of a slab to `part`, on CUDA cores.
    static DEVICE void multiply_plainly(const u8* const (&rows)[P::planes], const u8* const (&columns)[P::planes],
                                        float (&part)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4]) {
        const auto number = [&](const u8* block, int row, int k) {
            return *reinterpret_cast<const float*>(block + swizzled(row, k / 4) + k % 4 * 4);
        };
#pragma unroll 4
        for (int k = 0; k < SLAB / 4; ++k) {
            float x[ROWS], y[COLUMN_FRAGMENTS][2];
#pragma unroll
            for (int slot = 0; slot < ROWS; ++slot) x[slot] = number(rows[0], row_of(slot), k);
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) y[j][e] = number(columns[0], column_of(j + e * COLUMN_FRAGMENTS), k);
#pragma unroll
            for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) part[i][j][e] += x[i * 2 + e / 2] * y[j][e % 2];
        }
    }
    // Adds the products of a slab to `part`, on tensor cores.
    static DEVICE void multiply(const u8* const (&rows)[P::planes], const u8* const (&columns)[P::planes],
                                float (&part)[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4]) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
        for (int step = 0; step < SLAB / 32; ++step) {
            u32 a[P::planes][ROW_FRAGMENTS][4];
#pragma unroll
            for (int p = 0; p < P::planes; ++p)
#pragma unroll
                for (int i = 0; i < ROW_FRAGMENTS; ++i) {
                    const int row = warp / 2 * QUARTER + i * 16 + lane % 16;
                    load_matrix_x4(a[p][i], rows[p] + swizzled(row, step * 2 + lane / 16));
                }
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; j += 2) {
                u32 b[P::planes][4];
#pragma unroll
                for (int p = 0; p < P::planes; ++p) {
                    const int row = warp % 2 * QUARTER + j * 8 + lane / 16 * 8 + lane % 8;
                    load_matrix_x4(b[p], columns[p] + swizzled(row, step * 2 + lane / 8 % 2));
                }
#pragma unroll
                for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                    for (int n = 0; n < 2; ++n) multiply_planes(part[i][j + n], a, i, b, n);
            }
        }
    }
};

// ---- a row of tiles ----

// Norm and scale of each row of a batch, by which a product becomes a distance.
struct Lengths {
    const float *norm, *scale;
    u32 rows;  // for rows beyond, the norm is taken as NaN: no distance to such a row compares
};

// The products of one row tile with every `step`-th column tile, as one stream of slabs: while the caller looks at a
// tile, the next one's slabs are in flight. The slabs of the row tile stay in shared memory if all fit; else they are
// brought again for each column tile. P: the precision.
template <class P> struct TileStream {
    static constexpr int RING = TERCET_STREAM_RING, RESIDENT = TERCET_STREAM_RESIDENT;
    static constexpr int BLOCKS = RESIDENT + RING * P::planes;
    static_assert(2 * RING * P::planes <= BLOCKS, "a ring of both sides");
    struct Buffers {
        alignas(128) u8 bytes[BLOCKS][BLOCK];
        float lengths[2][2][TILE];  // [turn][norm or scale]: of the columns of the last tile and of the one before
    };
    static_assert(has_size<P, Buffers>(TERCET_STREAM_SHARED), "src/constants.rs");

    Buffers& buffers;
    Operand rows, columns;
    Pieces<P::planes> pieces;
    Lengths lengths;
    u32 row, column_tile, step, end;               // the first row; the column tile that is brought next, below end
    u32 slab = 0, given = 0, taken = 0, turn = 0;  // the slab brought next; the places of the ring filled and read next
    u32 lengths_tile;   // the column tile whose lengths are read next
    float length[2];    // norm and scale of this thread's column of the tile that is taken next
    bool resident;      // whether the slabs of the row tile stay in shared memory

    DEVICE TileStream(Buffers& buffers, const Operand& rows, const Operand& columns, const Lengths& lengths, u32 row, u32 first, u32 step, u32 end)
        : buffers(buffers), rows(rows), columns(columns), lengths(lengths), row(row), column_tile(first), step(step), end(end),
          lengths_tile(first), resident(rows.slabs * P::planes <= RESIDENT) {
        if (resident && first < end)
            for (u32 s = 0; s < rows.slabs; ++s)
#pragma unroll
                for (int p = 0; p < P::planes; ++p) pieces.bring(buffers.bytes[s * P::planes + p], rows, p, row, s);
#pragma unroll 1
        for (int k = 0; k < RING - 1; ++k) give();
        read_lengths();
    }
    // The block of the columns' slab at a place of the ring.
    DEVICE u8* of_columns(u32 place, int plane) { return buffers.bytes[(resident ? RESIDENT : RING * P::planes) + place * P::planes + plane]; }
    // The block of the rows' slab: the slab's own if all are resident, else that at a place of the ring.
    DEVICE u8* of_rows(u32 slab, u32 place, int plane) { return buffers.bytes[(resident ? slab : place) * P::planes + plane]; }

    // Starts to bring one more slab, if there is one, and ends a group of copies in either case: groups count slabs.
    DEVICE void give() {
        if (column_tile < end) {
#pragma unroll
            for (int p = 0; p < P::planes; ++p) {
                if (!resident) pieces.bring(of_rows(slab, given, p), rows, p, row, slab);
                pieces.bring(of_columns(given, p), columns, p, column_tile * TILE, slab);
            }
            if (++slab == columns.slabs) {
                slab = 0;
                column_tile += step;
            }
        }
        copy_async_commit();
        given = (given + 1) % RING;
    }
    // Reads norm and scale of this thread's column of the next column tile.
    DEVICE void read_lengths() {
        const u32 column = lengths_tile * TILE + threadIdx.x;
        const bool there = threadIdx.x < TILE && lengths_tile < end && column < lengths.rows;
        length[0] = there ? lengths.norm[column] : __int_as_float(0x7fffffff);
        length[1] = there ? lengths.scale[column] : 0.f;
        lengths_tile += step;
    }
    // Computes the products of the next tile. All threads of the block must call. The call overwrites the lengths of
    // the tile two before: no thread may still read them.
    DEVICE void take(GramTile<P>& tile) {
        turn ^= 1;
        if (threadIdx.x < TILE) {
            buffers.lengths[turn][0][threadIdx.x] = length[0];
            buffers.lengths[turn][1][threadIdx.x] = length[1];
        }
        read_lengths();
        tile.multiply_slabs(rows.slabs, [&](u32 slab, const u8* (&of_row)[P::planes], const u8* (&of_column)[P::planes]) {
            copy_async_wait<RING - 2>();
            __syncthreads();  // this slab is here, and all threads are done with the one whose place is filled next
            give();
#pragma unroll
            for (int p = 0; p < P::planes; ++p) {
                of_row[p] = of_rows(slab, taken, p);
                of_column[p] = of_columns(taken, p);
            }
            taken = (taken + 1) % RING;
        });
    }
    // The norm of a column of the tile that was taken last.
    DEVICE float norm(int column) const { return buffers.lengths[turn][0][column]; }
    // The scale of a column of the tile that was taken last.
    DEVICE float scale(int column) const { return buffers.lengths[turn][1][column]; }
};

// Norm and scale, by slot, of the rows that this thread holds products of; the tile begins at `row`. P: the precision.
template <class P> struct RowLengths {
    float norm[GramTile<P>::ROWS], scale[GramTile<P>::ROWS];

    DEVICE RowLengths(const Lengths& of, u32 row) {
#pragma unroll
        for (int s = 0; s < GramTile<P>::ROWS; ++s) {
            const u32 i = row + GramTile<P>::row_of(s);
            norm[s] = i < of.rows ? of.norm[i] : __int_as_float(0x7fffffff);
            scale[s] = i < of.rows ? of.scale[i] : 0.f;
        }
    }
};
