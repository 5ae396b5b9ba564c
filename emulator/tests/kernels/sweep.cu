// Sums of weights times columns: sweep_<n>, sweep_narrow_<n> and sweep_long_<n> have mistake n of sweep.bugs; those with 0 have
// none. A weight is what a pair's product, and a number of its column, make of it: 1 or 3.
#include "sweep.cuh"

struct Args {
    const u8 *rows, *columns;  // of f16 as hi + lo
    const float* terms;        // [columns]
    float* sums;               // [parts, row tiles, TILE, width]
    u32 row_tiles, tiles, slabs, splits;
};

// The loss. PLANES: of its weights.
template <class S, int PLANES> struct Thirds {
    static constexpr int planes = PLANES;
    const float* terms;
    float (&shared)[S::across][TILE * 2];

    DEVICE void look(u32) {}
    DEVICE void bring(u32 tile) {
        copy_async_few<4>(shared_address(&shared[0][0] + threadIdx.x), terms + u64(tile) * TILE * 2 + threadIdx.x % (TILE * 2));
    }
    DEVICE bool weigh(u32, float (&products)[S::COLUMN_FRAGMENTS][4], u32 (&w)[PLANES][S::STEPS][4]) {
        for (int j = 0; j < S::COLUMN_FRAGMENTS; ++j)
            for (int r = 0; r < 2; ++r) {
                float weight[2];
                for (int e = 0; e < 2; ++e) {
                    const float product = products[j][r * 2 + e], term = shared[0][S::column(j) + e];
                    weight[e] = 1.f + 2.f * is_below(term, product);
                }
                // In two planes a weight has a small part too.
                w[0][j / 2][j % 2 * 2 + r] = pack_f16(weight[0], weight[1]);
                if (PLANES == 2) w[PLANES - 1][j / 2][j % 2 * 2 + r] = pack_f16(weight[0] / 4096.f, weight[1] / 4096.f);
            }
        return true;
    }
    DEVICE float scale() { return 2.f; }
};

template <class S, int PLANES, class Sweep, class Course> DEVICE void sweep(const Args& args) {
    struct Shared {
        typename Sweep::Shared tiles;
        float terms[S::across][TILE * 2];
    };
    SHARED_DYNAMIC(Shared, shared);
    const u32 row_tile = blockIdx.x / args.splits, split = blockIdx.x % args.splits;
    Course course = {{args.rows, args.slabs}, {args.columns, args.slabs}, row_tile, split, args.splits, args.tiles, nullptr, 0};
    course.part_stride = u64(args.row_tiles) * TILE * course.width();
    course.sums = args.sums + split * S::parts * course.part_stride + u64(row_tile) * TILE * course.width();
    Thirds<S, PLANES> loss{args.terms, shared.terms};
    Sweep(shared.tiles, course).run(loss);
}

#define SWEEP_SHAPE(name, bug, of, threads, planes, ...)                                                             \
    KERNEL(name##bug, threads, const Args args) {                                                                    \
        using S = of::SweepShape<__VA_ARGS__>;                                                                       \
        sweep<S, planes, of::Sweep<Split, S>, of::Course>(args);                                                     \
    }
#define SWEEP_KERNEL(bug, of)                                        \
    SWEEP_SHAPE(sweep_, bug, of, 128, 1, false, 1, 0)                \
    SWEEP_SHAPE(sweep_narrow_, bug, of, 256, 2, false, 2, 0)         \
    SWEEP_SHAPE(sweep_long_, bug, of, 128, 1, true, 1, 16 << 10)
SWEEP_KERNEL(0, )
#include "sweep.bugs.cuh"
