// All numbers `norm_j + factor_j x_i.y_j` by strips: strip_<n> and, for long rows, strip_long_<n> have mistake n of
// strip.bugs; strip_0 and strip_long_0 have none.
#include "strip.cuh"

struct Args {
    const u8 *rows, *columns;  // planes, of two for strip_<n>, of one for strip_long_<n>
    const float* terms;        // [n up to whole tiles, 2]
    float* out;                // [m, n]
    u32 m, n, slabs, splits;
};

template <class Strip, class S> DEVICE void strip(const Args& args) {
    SHARED_DYNAMIC(typename Strip::Shared, shared);
    const u32 block = blockIdx.x / args.splits, split = blockIdx.x % args.splits, tiles = (args.n + S::columns - 1) / S::columns;
    Strip strip(shared, {args.rows, args.slabs}, {args.columns, args.slabs}, args.terms, block, split, args.splits, tiles);
    for (u32 tile = split; tile < tiles; tile += args.splits) {
        strip.take();
        for (int r = 0; r < Strip::ROWS; ++r)
            for (int q = 0; q < Strip::COLUMNS; ++q) {
                const u32 i = block * S::rows + Strip::row_of(r), j = tile * S::columns + Strip::column_of(Strip::lane(), q);
                const Pack<float, 4> terms = strip.terms_of(q / 2);
                if (i < args.m && j < args.n) args.out[u64(i) * args.n + j] = terms.v[q % 2 * 2] + terms.v[q % 2 * 2 + 1] * strip.product(r, q);
            }
    }
}

#define STRIP_KERNEL(bug, of)                                                                                              \
    KERNEL(strip_##bug, 128, const Args args) { strip<of::Strip<Split, of::StripShape<true, 64, 32, 2, 3>>, of::StripShape<true, 64, 32, 2, 3>>(args); } \
    KERNEL(strip_long_##bug, 128, const Args args) { strip<of::Strip<Half, of::StripShape<false, 64, 32, 2, 2>>, of::StripShape<false, 64, 32, 2, 2>>(args); }
STRIP_KERNEL(0, )
// STRIP_KERNEL(n, bug_n) for each mistake, with strip.cuh in its namespace.
#include "strip.bugs.cuh"
