// The ranks of keys, equal ones in their given order, by sorted runs: a block sorts a run of RUN keys in shared memory;
// then each key is searched in all runs. Its rank is how many keys are smaller, and how many of its equals come before it.
// Keys of one run come before those of the next, so runs say which of two equals comes first.
#pragma once
#include "batch.cuh"

constexpr u32 RUN = TERCET_RUN;
static_assert((RUN & (RUN - 1)) == 0 && RUN % BATCH_THREADS == 0, "a power of two, and as many keys for each thread");
// Rows that a block ranks, one a lane of each warp; every warp looks at its share of what they are compared with.
constexpr u32 RANKED = TERCET_RANKED;
static_assert(RANKED == 32 && BATCH_THREADS % RANKED == 0, "a lane a row");

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

// A block sorts a run of keys, equal ones in their order, by merging pairs of sorted parts that grow: a key's new place is
// its own in its part, and how many keys of the other part come before it. That number is searched one bit after the
// other, by all of a thread's keys at a time.
// key(i): key i of `count`. sorted: takes the keys of each run. sorted_at: takes the i of each of them.
template <class K, class F> DEVICE void sort_run(u32 count, F key, K* sorted, u32* sorted_at) {
    SHARED(K, keys, RUN);
    SHARED(u32, at, RUN);
    constexpr u32 ITEMS = RUN / BATCH_THREADS;
    const u32 base = blockIdx.x * RUN, size = count - base < RUN ? count - base : RUN;
#pragma unroll
    for (u32 item = 0; item < ITEMS; ++item) {
        const u32 i = item * BATCH_THREADS + threadIdx.x;
        if (i < size) {
            keys[i] = key(base + i);
            at[i] = base + i;
        }
    }
    __syncthreads();  // the keys are there
    for (u32 width = 1; width < size; width *= 2) {
        K mine[ITEMS];
        u32 mine_at[ITEMS], before[ITEMS];
#pragma unroll
        for (u32 item = 0; item < ITEMS; ++item) {
            const u32 i = item * BATCH_THREADS + threadIdx.x;
            before[item] = 0;
            if (i < size) {
                mine[item] = keys[i];
                mine_at[item] = at[i];
            }
        }
#pragma unroll 1
        for (u32 bit = width; bit > 0; bit /= 2)
#pragma unroll
            for (u32 item = 0; item < ITEMS; ++item) {
                const u32 i = item * BATCH_THREADS + threadIdx.x, other = (i ^ width) & ~(width - 1);
                const u32 last = before[item] + bit - 1;  // whether so many come before is told by the last of them
                if (i >= size || last >= width || other + last >= size) continue;
                // Equal keys stay in their order: those of a part on the left come before.
                const K theirs = keys[other + last];
                if (other < i ? theirs <= mine[item] : theirs < mine[item]) before[item] += bit;
            }
        __syncthreads();  // all threads have searched the parts
#pragma unroll
        for (u32 item = 0; item < ITEMS; ++item) {
            const u32 i = item * BATCH_THREADS + threadIdx.x;
            if (i < size) {
                const u32 to = (i & ~width) + before[item];
                keys[to] = mine[item];
                at[to] = mine_at[item];
            }
        }
        __syncthreads();  // the merged parts are there
    }
#pragma unroll
    for (u32 item = 0; item < ITEMS; ++item) {
        const u32 i = item * BATCH_THREADS + threadIdx.x;
        if (i < size) {
            sorted[base + i] = keys[i];
            sorted_at[base + i] = at[i];
        }
    }
}

// A block ranks RANKED keys of the runs that sort_run has sorted: neighbours in a run, whose searches read the same places.
// found(i, smaller, equal, before): called for key i of `count`, with the numbers of smaller keys, of equal ones, itself
// included, and of equal ones before it.
template <class K, class F> DEVICE void rank_runs(u32 count, const K* sorted, const u32* sorted_at, F found) {
    const u32 place = blockIdx.x * RANKED + threadIdx.x % RANKED, runs = (count + RUN - 1) / RUN;
    const K mine = place < count ? sorted[place] : K(0);
    u32 smaller = 0, equal = 0, before = 0;
    for (u32 run = threadIdx.x / 32; run < runs; run += BATCH_THREADS / 32) {
        const K* keys = sorted + run * RUN;
        const u32 size = count - run * RUN < RUN ? count - run * RUN : RUN;
        u32 below = 0, up_to = 0;
#pragma unroll
        for (u32 bit = RUN; bit > 0; bit /= 2) {
            const u32 b = below + bit - 1, u = up_to + bit - 1;
            if (b < size && keys[b] < mine) below += bit;
            if (u < size && keys[u] <= mine) up_to += bit;
        }
        smaller += below;
        equal += up_to - below;
        before += run < place / RUN ? up_to - below : run == place / RUN ? place % RUN - below : 0;
    }
    smaller = sum_of_warps(smaller);
    equal = sum_of_warps(equal);
    before = sum_of_warps(before);
    if (threadIdx.x < RANKED && place < count) found(sorted_at[place], smaller, equal, before);
}
