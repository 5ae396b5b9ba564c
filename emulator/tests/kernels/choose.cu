// The search of batch_semi_hard: choose_<n> has mistake n of choose.bugs, and choose_0 none. It is launched with the arguments of
// batch_semi_hard_choose_highest_narrow.
#include "triplets.cuh"

using Shape = StripShape<true, TERCET_STRIP_NARROW>;
#undef CHOOSE_KERNEL
#define CHOOSE_KERNEL(n, engine) \
    KERNEL(choose_##n, Shape::threads, const Args args) { engine::Search<Split, Shape, SEMI_HARD>::run(args); }

CHOOSE_KERNEL(0, )
#include "choose.bugs.cuh"
