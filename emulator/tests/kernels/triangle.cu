// The least numbers of columns by half of the tiles: triangle_<n>, and triangle_clear_<n> and triangle_look_<n> before and after
// it, have mistake n of triangle.bugs; those with 0 have none.
#include "triangle.cuh"

struct Args {
    const u8* planes;    // of rows of f16
    const float* terms;  // [held, 2]
    u64* key;
    u32* most;
    u32* seen;           // [blocks of rows, tiles]: how often a tile was taken
    u32* looked;         // [rows, rows]: whether an anchor, the first index, looked at a row
    float window;        // up to which difference numbers are not far beyond each other
    u32 rows, held, slabs, splits, unused;
};

using Shape = StripShape<true, 32, 32, 2, 2>;
template <class Columns> DEVICE Columns columns(const Args& args) { return {args.key, args.most, args.held}; }

template <class Columns> DEVICE void clear(const Args& args) {
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column < args.held) columns<Columns>(args).clear(column, column < args.rows);
}

template <class Triangle, class Columns, class Least> DEVICE void triangle(const Args& args) {
    using Strip = ::Strip<Half, Shape>;
    using Shared = typename Strip::Shared;
    SHARED_DYNAMIC(Shared, shared);
    const Triangle triangle(args.rows, Shape::columns, args.splits);
    triangle.each([&](u32 block, u32 first) {
        const Operand operand = {args.planes, args.slabs};
        Strip strip(shared, operand, operand, args.terms, block, first, args.splits, triangle.tiles);
        for (u32 tile = first; tile < triangle.tiles; tile += args.splits) {
            strip.take();
            if (threadIdx.x == 0) atomicAdd(&args.seen[block * triangle.tiles + tile], 1u);
            Least least;
            least.ask(columns<Columns>(args), tile);
            for (int r = 0; r < Strip::ROWS; ++r)
                for (int q = 0; q < Strip::COLUMNS; ++q) {
                    const u32 i = block * Shape::rows + Strip::row_of(r), j = tile * Shape::columns + Strip::column_of(Strip::lane(), q);
                    least.take(r, q, args.terms[i * 2] + args.terms[j * 2 + 1] * strip.product(r, q));
                }
            least.give(columns<Columns>(args), tile, block * Shape::rows, [&](u32, float number) { return number + args.window; });
        }
    });
}

template <class Columns> DEVICE void look(const Args& args) {
    const u32 anchor = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (anchor >= args.rows) return;
    const Columns of = columns<Columns>(args);
    of.each_row(anchor, of.least(anchor) + args.window, Shape::warp_rows, [&](u32 row) {
        if (threadIdx.x % 32 == 0) args.looked[u64(anchor) * args.rows + row] = 1;
    });
}

#define TRIANGLE_KERNEL(bug, of)                                                                                       \
    KERNEL(triangle_clear_##bug, 256, const Args args) { clear<of::Columns>(args); }                                   \
    KERNEL(triangle_##bug, 256, const Args args) { triangle<of::Triangle, of::Columns, of::LeastOfColumns<Half, Shape>>(args); } \
    KERNEL(triangle_look_##bug, 256, const Args args) { look<of::Columns>(args); }
TRIANGLE_KERNEL(0, )
// TRIANGLE_KERNEL(n, bug_n) for each mistake, with triangle.cuh in its namespace.
#include "triangle.bugs.cuh"
