// The Gram engine of losses that keep a few numbers for each row: a block multiplies its rows with one tile of columns
// after another, and looks at a tile's products in registers while the next tile is on its way. Written for few
// instructions a product: panels (tile.cuh) are brought whole and read with offsets that are computed once.
//
// P, everywhere below: the precision, with numbers of 16 bits. S: a StripShape.
#pragma once
#include "tile.cuh"

// The shape of a block: warps of WARP_ROWS x WARP_COLUMNS products each, ACROSS of them beside each other. STAGES: the
// panels of columns that are in shared memory at a time. RESIDENT: the rows are short, and stay in shared memory; else
// they are brought again with each panel of columns.
template <bool RESIDENT, int WARP_ROWS, int WARP_COLUMNS, int ACROSS, int STAGES> struct StripShape {
    static constexpr int warp_rows = WARP_ROWS, warp_columns = WARP_COLUMNS, across = ACROSS, stages = STAGES;
    static constexpr int rows = TERCET_STRIP_ROWS, columns = WARP_COLUMNS * ACROSS, threads = rows / WARP_ROWS * ACROSS * 32;
    static constexpr bool resident = RESIDENT;
    static_assert(rows % TILE == 0 && columns % TILE == 0 && TILE % WARP_ROWS == 0 && TILE % WARP_COLUMNS == 0, "warps within panels");
};

// The column, within a tile, of column q of lane `lane` of a strip.
DEVICE u32 column_of_lane(u32 warp_columns, u32 lane, u32 q) { return lane / 4 * warp_columns + q / 2 * 8 + lane % 4 * 2 + q % 2; }

// The products of one block of rows with every `step`-th tile of columns.
template <class P, class S> struct Strip {
    static_assert(P::bytes == 2, "numbers of 16 bits");
    static constexpr int ROW_FRAGMENTS = S::warp_rows / 16, COLUMN_FRAGMENTS = S::warp_columns / 8;
    // Rows and columns of a tile that this thread has products of, ROWS x COLUMNS of them.
    static constexpr int ROWS = ROW_FRAGMENTS * 2, COLUMNS = COLUMN_FRAGMENTS * 2;
    // Threads of a block that have products of the same row: the lanes of a strip.
    static constexpr int LANES = 4 * S::across;
    // Bytes of the planes of one panel of rows, and of what a stage holds of the columns and of the rows.
    static constexpr int PANELS = P::planes * PANEL, OF_COLUMNS = S::columns / TILE * PANELS, OF_ROWS = S::resident ? 0 : S::rows / TILE * PANELS;
    static constexpr int RESIDENT_PANELS = S::resident ? TERCET_STRIP_RESIDENT : 0;
    // Tensor cores truncate what they add: they sum up 256 numbers at most, and those sums are added up on CUDA cores.
    static constexpr int SHORT = 256 * P::bytes / PANEL_WIDTH;
    static_assert(RESIDENT_PANELS <= SHORT, "short rows are summed up at once");

    struct Shared {
        alignas(128) u8 rows[RESIDENT_PANELS > 0 ? RESIDENT_PANELS * (S::rows / TILE) * PANELS : 128];
        float terms[2][S::columns][2];  // by tile: norm, and the factor of a product; place_of_terms says which
        u8 ring[S::stages][OF_COLUMNS + OF_ROWS];
    };
    // As many tiles have their terms here at a time as have panels in the ring: two, or of one panel a row one for each stage.
    // Then half of the place for rows is free, and the third are at its end: there is no room for more.
    static_assert(S::stages == 2 || (S::stages == 3 && S::resident), "a third place where half of the rows' is free");

    Shared& shared;
    float sum[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];
    const u8 *next, *rows;         // this thread's first piece of what is brought next; and of the rows
    const float* terms;            // of the batch of the columns, by row: norm and factor
    u32 panels, step, end;         // panels of a row; tiles from one to the next; the tiles' end
    u32 given_tile, given_panel;   // what is brought next
    u32 given, taken;              // stages filled and read next
    u32 given_turn, turn;          // places of the terms of the tile brought next, and of the tile taken last
    SharedAddress a_at;            // this lane's first piece of the warp's rows: its address if they are resident, else its place in a stage
    SharedAddress b_at;            // this lane's first piece of the warp's columns: its place in a stage

    // Starts with the rows from row_block * S::rows on, and the tiles of columns first, first + step, .. below end.
    // terms: of the columns, [rows][2], with rows up to whole tiles.
    DEVICE Strip(Shared& shared, const Operand& of_rows, const Operand& of_columns, const float* terms, u32 row_block, u32 first, u32 step, u32 end)
        : shared(shared), terms(terms), panels(of_rows.panels()), step(step), end(end), given_tile(first), given_panel(0), given(0), taken(0),
          given_turn(0), turn(places() - 1) {
        const u64 tile_bytes = u64(panels) * PANELS;
        rows = of_rows.planes + u64(row_block) * (S::rows / TILE) * tile_bytes + threadIdx.x * 16;
        next = of_columns.planes + u64(first) * (S::columns / TILE) * tile_bytes + threadIdx.x * 16;
        if constexpr (S::resident)
            for (u32 at = 0; at < (S::rows / TILE) * tile_bytes; at += S::threads * 16) copy_async16(shared.rows + at + threadIdx.x * 16, rows + at, true);
        const u32 lane = threadIdx.x % 32, row = warp_row() % TILE + lane % 16, column = warp_column() % TILE + lane / 16 * 8 + lane % 8;
        const u32 of_a = warp_row() / TILE * (S::resident ? panels : 1) * PANELS + in_panel(row, lane / 16);
        a_at = kept(S::resident ? shared_address(shared.rows) + of_a : OF_COLUMNS + of_a);
        b_at = kept(warp_column() / TILE * PANELS + in_panel(column, lane / 8 % 2));
#pragma unroll 1
        for (int k = 0; k < S::stages - 1; ++k) give();
    }

    // The first row, and the first column, of this thread's warp in the block's tile.
    static DEVICE u32 warp_row() { return threadIdx.x / 32 / S::across * S::warp_rows; }
    static DEVICE u32 warp_column() { return threadIdx.x / 32 % S::across * S::warp_columns; }
    // The row, within the tile, of this thread's row r.
    static DEVICE u32 row_of(int r) { return warp_row() + r / 2 * 16 + r % 2 * 8 + threadIdx.x % 32 / 4; }
    // The column, within the tile, of column q of lane `lane` of the strip.
    static DEVICE u32 column_of(u32 lane, u32 q) { return column_of_lane(S::warp_columns, lane, q); }
    // Which lane of the strip this thread is.
    static DEVICE u32 lane() { return threadIdx.x / 32 % S::across * 4 + threadIdx.x % 4; }
    // How many places there are for terms.
    DEVICE u32 places() const { return S::stages == 3 && panels == 1 ? 3 : 2; }
    // The terms of the columns at a place. The places end where `terms` ends.
    DEVICE float* place_of_terms(u32 place) const {
        if constexpr (S::stages == 2) return &shared.terms[place][0][0];
        return reinterpret_cast<float*>(shared.ring) - (places() - place) * (S::columns * 2);
    }
    // The product of this thread's row r and column q.
    DEVICE float& product(int r, int q) { return sum[r / 2][q / 2][r % 2 * 2 + q % 2]; }

    // Starts to bring one more panel, if there is one, and ends a group of copies in either case: groups count panels.
    DEVICE void give() {
        if (given_tile < end) {
            const u32 tile_bytes = panels * PANELS;
            u8* const to = shared.ring[given] + threadIdx.x * 16;
#pragma unroll
            for (int t = 0; t < S::columns / TILE; ++t)
#pragma unroll
                for (int k = 0; k < PANELS; k += S::threads * 16) copy_async16(to + t * PANELS + k, next + u64(t) * tile_bytes + k, true);
            if constexpr (!S::resident) {
                const u8* const from = rows + u64(given_panel) * PANELS;
#pragma unroll
                for (int t = 0; t < S::rows / TILE; ++t)
#pragma unroll
                    for (int k = 0; k < PANELS; k += S::threads * 16) copy_async16(to + OF_COLUMNS + t * PANELS + k, from + u64(t) * tile_bytes + k, true);
            }
            const u32 column = threadIdx.x * 2;
            copy_async16_if(given_panel == 0 && column < S::columns, place_of_terms(given_turn) + column * 2,
                            terms + (u64(given_tile) * S::columns + column) * 2);
            if (given_panel == 0) given_turn = given_turn + 1 == places() ? 0 : given_turn + 1;
            next += PANELS;
            if (++given_panel == panels) {
                given_panel = 0;
                given_tile += step;
                next += (u64(step) * (S::columns / TILE) - 1) * tile_bytes;
            }
        }
        copy_async_commit();
        given = given + 1 == S::stages ? 0 : given + 1;
    }

    // Computes the products of the next tile. All threads of the block must call.
    DEVICE void take() {
        float before[ROW_FRAGMENTS][COLUMN_FRAGMENTS][4];
        each([&](float& x, int, int, int) { x = 0.f; });
        if constexpr (!S::resident) each([&](float&, int i, int j, int e) { before[i][j][e] = 0.f; });
        turn = turn + 1 == places() ? 0 : turn + 1;
        SharedAddress a = a_at;
#pragma unroll 1
        for (u32 panel = 0; panel < panels; ++panel) {
            copy_async_wait<S::stages - 2>();
            __syncthreads();  // this panel is here, and all threads are done with the one whose stage is filled next
            give();
            const SharedAddress stage = shared_address(shared.ring[taken]);
            multiply(kept(S::resident ? a : stage + a_at), kept(stage + b_at));
            a += PANELS;
            taken = taken + 1 == S::stages ? 0 : taken + 1;
            if constexpr (!S::resident)
                if (panel % SHORT == SHORT - 1)
                    each([&](float& x, int i, int j, int e) {
                        before[i][j][e] += x;
                        x = 0.f;
                    });
        }
        if constexpr (!S::resident) each([&](float& x, int i, int j, int e) { x += before[i][j][e]; });
    }

    // Norm and factor of this thread's column 2 j, and then of column 2 j + 1, of the tile that was taken last.
    DEVICE Pack<float, 4> terms_of(int j) const {
        return load<float, 4>(place_of_terms(turn) + (warp_column() + j * 8 + threadIdx.x % 4 * 2) * 2);
    }

    // f(sum, i, j, e): called for each sum of this thread, number e of fragment j of columns and fragment i of rows.
    template <class F> DEVICE void each(F f) {
#pragma unroll
        for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) f(sum[i][j][e], i, j, e);
    }
    // Adds the products of one panel to the sums. a_piece, b_piece: this lane's first piece of the warp's rows and columns.
    // The pieces of the next 32 bytes are two further in the order of the row, so their places differ in bits 5 and 6.
    DEVICE void multiply(SharedAddress a_piece, SharedAddress b_piece) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            u32 a[P::planes][ROW_FRAGMENTS][4];
#pragma unroll
            for (int p = 0; p < P::planes; ++p)
#pragma unroll
                for (int i = 0; i < ROW_FRAGMENTS; ++i) load_matrix_x4(a[p][i], (a_piece ^ SharedAddress(k * 32)) + (p * PANEL + i * 16 * PANEL_WIDTH));
#pragma unroll
            for (int j = 0; j < COLUMN_FRAGMENTS; j += 2) {
                u32 b[P::planes][4];
#pragma unroll
                for (int p = 0; p < P::planes; ++p) load_matrix_x4(b[p], (b_piece ^ SharedAddress(k * 32)) + (p * PANEL + j * 8 * PANEL_WIDTH));
#pragma unroll
                for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma unroll
                    for (int n = 0; n < 2; ++n) multiply_planes(sum[i][j + n], a, i, b, n);
            }
        }
    }
};
