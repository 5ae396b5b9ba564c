// Half of the tiles of a batch with itself. d_ij = d_ji, so a block of rows takes the columns from its own first row on alone:
// beyond the square of the block with itself, which it takes in full, a product serves its row, and its column as an anchor.
// Here is which tiles a block takes, and how the least of a column comes together from the blocks of rows before it.
//
// P, everywhere below: the precision. S: a StripShape.
#pragma once
#include "strip.cuh"

// ---- which tiles ----

// Blocks of rows are taken in pairs, the first with the last: all pairs have as many tiles, but for one of a block alone, in
// the middle. The tiles of a pair are dealt to `splits` blocks of threads in turn: first those of its first block of rows.
struct Triangle {
    u32 blocks, tiles, square, splits;  // of rows; of columns; tiles of columns that have a block's own rows; parts of a pair

    DEVICE Triangle(u32 rows, u32 columns, u32 splits)
        : blocks((rows + TERCET_STRIP_ROWS - 1) / TERCET_STRIP_ROWS), tiles((rows + columns - 1) / columns),
          square(TERCET_STRIP_ROWS / columns), splits(splits) {}
    // The other block of a pair; in the middle the block itself.
    DEVICE u32 other(u32 block) const { return blocks - 1 - block; }
    // The first tile of a block of rows that part `split` takes; every splits-th from there on is its too.
    DEVICE u32 first_tile(u32 block, u32 split) const {
        const u32 own = block * square;
        if (block <= other(block)) return own + split;
        const u32 before = (tiles - other(block) * square) % splits;  // parts that have a tile more by then
        return own + (split + splits - before) % splits;
    }
    // f(block, first): called for each block of rows of this block of threads, and the first tile of it.
    template <class F> DEVICE void each(F f) const {
        const u32 pair = blockIdx.x / splits, split = blockIdx.x % splits;
#pragma unroll 1
        for (u32 turn = 0; turn < (pair == other(pair) ? 1 : 2); ++turn) {
            const u32 block = turn == 0 ? pair : other(pair);
            f(block, first_tile(block, split));
            // A part may have no tile of a block, and its rows are on their way all the same.
            copy_async_wait<0>();
            __syncthreads();  // all threads are done with the block's shared memory
        }
    }
};

// ---- what a column keeps ----

// Bits that compare as the floats do.
DEVICE u32 in_order(float x) {
    const u32 bits = __float_as_uint(x);
    return bits ^ (bits >> 31 ? 0xffffffff : 0x80000000);
}
DEVICE float from_order(u32 x) { return __uint_as_float(x ^ (x >> 31 ? 0x80000000 : 0xffffffff)); }

// Keys that are kept of a column.
constexpr u32 KEPT = TERCET_TRIANGLE_KEPT;

// Of each column the least numbers that the warps before it have found, as keys: the number, which warp's rows, counted from
// the first of the batch, and which eighths of these have it. Numbers that are far beyond the least, as `most_of` says it,
// may be kept or not; of all others the KEPT least are there, whatever the order of the blocks:
//   a key goes to the first place by a minimum that returns the old value, the larger of both to the second place, and so on.
//   So each key that a place does not end with is returned once, and goes on, unless it is far beyond.
//
// most_of(number), everywhere below: up to which number is not far beyond a least of `number`; never less for a larger one.
struct Columns {
    u64* key;   // [KEPT, held]
    u32* most;  // [held]: up to which number a column takes, in_order
    u32 held;   // columns

    // Nothing is here yet. +inf is never taken; nothing is where there is no column.
    DEVICE void clear(u32 column, bool there) const {
#pragma unroll
        for (u32 k = 0; k < KEPT; ++k) key[u64(k) * held + column] = ~u64(0);
        most[column] = in_order(__uint_as_float(there ? 0x7f7fffff : 0xff800000));
    }
    static DEVICE float number_of(u64 key) { return from_order(u32(key >> 32)); }  // NaN: there is none
    // The least number of a column; NaN if there is none.
    DEVICE float least(u32 column) const { return number_of(key[column]); }

    // Gives a key to a column if it is `wanted`, by a whole warp: no thread goes another way, and the compiler knows it.
    template <class F> DEVICE void insert(bool wanted, u32 column, u64 mine, F most_of) const {
        if (wanted) atomicMin(&most[column], in_order(most_of(number_of(mine))));
#pragma unroll 1
        for (u32 k = 0; k < KEPT; ++k) {
            u64 old = ~u64(0);
            if (wanted) old = atomicMin(&key[u64(k) * held + column], mine);
            const u64 less = mine < old ? mine : old;
            mine = mine < old ? old : mine;
            wanted = wanted && number_of(mine) <= most_of(number_of(less));  // else it is far beyond, or there was none
            if (!__any_sync(0xffffffff, wanted)) return;
        }
    }
    // f(row): called for rows before the column's own block; among them are all that have a number up to `most`, which is
    // not far beyond the least. warp_rows: of the strip's shape.
    template <class F> DEVICE void each_row(u32 column, float most, u32 warp_rows, F f) const {
        if (number_of(key[u64(KEPT - 1) * held + column]) <= most) {
            // There may be more than are kept.
            for (u32 row = 0; row < column / TERCET_STRIP_ROWS * TERCET_STRIP_ROWS; ++row) f(row);
            return;
        }
        for (u32 k = 0; k < KEPT - 1; ++k) {
            const u64 found = key[u64(k) * held + column];
            if (!(number_of(found) <= most)) return;
            const u32 first = u32(found) / 256 * warp_rows;
            for (u32 eighths = u32(found) % 256; eighths; eighths &= eighths - 1)
                for (u32 row = u32(__ffs(int(eighths))) - 1; row < warp_rows; row += 8) f(first + row);
        }
    }
};

// The least of each column of a tile over the rows of a warp.
template <class P, class S> struct LeastOfColumns {
    using Strip = ::Strip<P, S>;
    // A thread has rows of one eighth, those of its group of lanes, lane / 4; and in the end EACH columns for all eight.
    static constexpr int COUNT = Strip::COLUMNS, EACH = COUNT / 8;
    float least[COUNT];  // by column of this thread
    float bound[EACH];   // up to which number the columns take that this thread ends with

    // This thread's column k of those that it ends with.
    static DEVICE u32 column_of(u32 tile, u32 k) { return tile * S::columns + Strip::column_of(Strip::lane(), threadIdx.x % 32 / 4 * EACH + k); }

    // Asks what the columns of a tile take: long before it is needed.
    DEVICE void ask(const Columns& columns, u32 tile) {
#pragma unroll
        for (int k = 0; k < EACH; ++k) bound[k] = from_order(load_relaxed(&columns.most[column_of(tile, k)]));
    }
    // This lane and the one `offset` further take over half of each other's 2 HALF columns.
    template <int HALF> static DEVICE void exchange(float (&part)[COUNT], u32 offset) {
        const bool upper = threadIdx.x & offset;
#pragma unroll
        for (int q = 0; q < HALF; ++q) {
            const float mine = upper ? part[q + HALF] : part[q], others = upper ? part[q] : part[q + HALF];
            part[q] = fminf(mine, __shfl_xor_sync(0xffffffff, others, int(offset)));
        }
    }
    // Takes the number of this thread's row r and column q; row 0 comes first.
    DEVICE void take(int r, int q, float number) { least[q] = r == 0 ? number : fminf(least[q], number); }
    // Gives what the warp has found to the columns, unless the tile is in the square of the block with itself.
    // first_row: of the block. most_of(column, number): of a column.
    template <class F> DEVICE void give(const Columns& columns, u32 tile, u32 first_row, F most_of) const {
        float part[COUNT];
#pragma unroll
        for (int q = 0; q < COUNT; ++q) part[q] = least[q];
        exchange<COUNT / 2>(part, 16);
        exchange<COUNT / 4>(part, 8);
        exchange<COUNT / 8>(part, 4);
        bool any = false;
#pragma unroll
        for (int k = 0; k < EACH; ++k) any = any || part[k] <= bound[k];
        // A warp decides, not each of its threads.
        if (!__any_sync(0xffffffff, any && tile * S::columns >= first_row + S::rows)) return;
        const u32 lane = threadIdx.x % 32, of_warp = (first_row + Strip::warp_row()) / S::warp_rows;
        const auto most = [&](int k, float number) { return most_of(column_of(tile, k), number); };
        u32 eighths[EACH];
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            const float up_to = most(k, part[k]);
            u32 mine = 0;
#pragma unroll
            for (int g = 0; g < 8; ++g) {
                const u32 hits = __ballot_sync(0xffffffff, least[g * EACH + k] <= __shfl_sync(0xffffffff, up_to, g * 4 + int(lane % 4)));
                if (lane / 4 == u32(g)) mine = hits >> lane % 4 & 0x11111111;
            }
            mine = (mine | mine >> 3) & 0x03030303;
            mine = (mine | mine >> 6) & 0x000f000f;
            eighths[k] = (mine | mine >> 12) & 0xff;
        }
#pragma unroll
        for (int k = 0; k < EACH; ++k) {
            const u64 key = u64(in_order(part[k])) << 32 | of_warp << 8 | eighths[k];
            columns.insert(part[k] <= bound[k], column_of(tile, k), key, [&](float number) { return most(k, number); });
        }
    }
};
