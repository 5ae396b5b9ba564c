// Sums in a fixed order: the same bits in every run.
#pragma once
#include "platform.cuh"

// The mask of this thread's group: an aligned run of LANES lanes of its warp. Groups of one warp may diverge.
template <int LANES> DEVICE u32 group_mask() {
    return (0xffffffffu >> (32 - LANES)) << (threadIdx.x % 32 / LANES * LANES);
}

// The sum of x over this thread's group of LANES lanes. Every lane of the group must call and gets it.
template <int LANES, class A> DEVICE A group_sum(A x) {
    const u32 mask = group_mask<LANES>();
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(mask, x, offset);
    return x;
}

// The sum of x over the lanes of this thread's warp up to its own. The whole warp must call.
template <class A> DEVICE A sum_up_to_lane(A x) {
#pragma unroll
    for (int offset = 1; offset < 32; offset *= 2) {
        const A before = __shfl_up_sync(0xffffffff, x, offset);
        if (threadIdx.x % 32 >= u32(offset)) x += before;
    }
    return x;
}

// The maximum of x over this thread's group of LANES lanes. Every lane of the group must call and gets it. NaN wins:
// fmax would drop it.
template <int LANES, class A> DEVICE A group_max(A x) {
    const u32 mask = group_mask<LANES>();
#pragma unroll
    for (int offset = LANES / 2; offset > 0; offset /= 2) {
        const A y = __shfl_xor_sync(mask, x, offset);
        x = y > x || y != y ? y : x;
    }
    return x;
}

// The sum of x over a block of THREADS threads; thread 0 gets it. All threads of the block must call.
template <int THREADS> DEVICE double block_sum(double x) {
    SHARED(double, warp_sums, THREADS / 32);
    x = group_sum<32>(x);
    __syncthreads();  // thread 0 has read the warps' sums of the call before
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int w = 0; w < THREADS / 32; ++w) sum += warp_sums[w];
    return sum;
}

// True in all threads of the block that calls last of `blocks`, which then sees what these blocks wrote before their calls. All
// threads of each of them must call. ticket: 0 at launch.
DEVICE bool last_of(u32* ticket, u32 blocks) {
    SHARED(u32, order, 1);
    __syncthreads();  // all of the block's writes come before thread 0 releases them
    if (threadIdx.x == 0) order[0] = add_release_acquire(ticket, 1);
    __syncthreads();
    return order[0] == blocks - 1;
}
// The same of all blocks of the grid.
DEVICE bool last_block(u32* ticket) { return last_of(ticket, gridDim.x); }

// Sums each of x[0] .. x[K - 1] over all threads of `blocks` blocks, THREADS a block, of which this one is number `block`. True
// in thread 0 of the one that finishes last, where `sum` is the result; false in all others. partials: K numbers a block.
// ticket: 0 at launch.
template <int THREADS, int K> DEVICE bool sums_of_blocks(const double (&x)[K], double* partials, u32* ticket, u32 block, u32 blocks, double (&sum)[K]) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
        const double of_block = block_sum<THREADS>(x[k]);
        if (threadIdx.x == 0) partials[k * blocks + block] = of_block;
    }
    if (!last_of(ticket, blocks)) return false;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        double mine = 0;
        for (u32 i = threadIdx.x; i < blocks; i += THREADS) mine += partials[k * blocks + i];
        sum[k] = block_sum<THREADS>(mine);
    }
    return threadIdx.x == 0;
}
// The same over all threads of the grid.
template <int THREADS, int K> DEVICE bool grid_sums(const double (&x)[K], double* partials, u32* ticket, double (&sum)[K]) {
    return sums_of_blocks<THREADS>(x, partials, ticket, blockIdx.x, gridDim.x, sum);
}
// Sums x over all threads of the grid, THREADS a block. True in thread 0 of the block that finishes last, where `sum`
// is the result; false in all others. partials: one number a block. ticket: 0 at launch.
template <int THREADS> DEVICE bool grid_sum(double x, double* partials, u32* ticket, double& sum) {
    const double one[1] = {x};
    double result[1];
    const bool last = grid_sums<THREADS>(one, partials, ticket, result);
    if (last) sum = result[0];
    return last;
}
