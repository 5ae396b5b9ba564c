// The sum of all numbers in the manner of kernels/reduce.cuh, and what can go wrong in it: sum_0 is right, sum_<n> has
// bug n of tests/seeded_bugs.rs.
#include "reduce.cuh"

struct Args {
    const float* x;
    u64* greatest;     // the largest index; at first 0
    double* partials;  // one per block
    u32* ticket;       // at first 0
    double* sum;
    i64 count;
};

constexpr int THREADS = 128, WARPS = THREADS / 32;

template <int BUG> DEVICE double sum_of_block(double x) {
    SHARED(double, lane_sums, THREADS);
    SHARED(double, warp_sums, WARPS);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    // Through shared memory, to have a __syncwarp in each step.
    double* mine = lane_sums + warp * 32;
    mine[lane] = x;
    for (int offset = 16; offset > 0; offset /= 2) {
        if (BUG == 1) {
        } else if (BUG == 2) {
            __syncwarp(lane < 16 ? 0xffff : 0xffff0000);
        } else {
            __syncwarp();
        }
        if (lane < offset) mine[lane] += mine[BUG == 3 ? lane + offset + 16 : lane + offset];
    }
    if (BUG != 4) __syncthreads();
    if (lane == 0) warp_sums[BUG == 5 ? 0 : warp] = mine[0];
    if (BUG != 6) __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0)
        for (int w = 0; w < (BUG == 7 ? WARPS + 1 : WARPS); ++w) sum += warp_sums[w];
    return sum;
}

template <int BUG> DEVICE void sum(const Args& args) {
    SHARED(u32, order, 1);
    double x = 0;
    for (i64 i = i64(blockIdx.x) * THREADS + threadIdx.x; i < args.count + (BUG == 8 ? 1 : 0); i += i64(gridDim.x) * THREADS) {
        x += args.x[i];
        if (BUG != 9) atomicMax(args.greatest, u64(i));
        else if (u64(i) > *args.greatest) *args.greatest = u64(i);
    }
    if (BUG == 10 && threadIdx.x >= 96) __syncthreads();
    if (BUG == 11 && threadIdx.x == 5) named_barrier(1, 64);
    if (BUG == 12 && threadIdx.x % 2) x = __shfl_xor_sync(0xffffffff, x, 0);
    if (BUG == 13) x += 0 * __shfl_xor_sync(group_mask<8>(), x, 8);
    x = sum_of_block<BUG>(x);  // all of it in thread 0, and 0 in the others
    const double block = sum_of_block<BUG>(threadIdx.x ? 0 : x);
    if (threadIdx.x == 0) {
        args.partials[BUG == 14 ? 0 : blockIdx.x] = block;
        order[0] = BUG == 15 ? atomicAdd(args.ticket, 1) : add_release_acquire(args.ticket, 1);
    }
    if (BUG != 16) __syncthreads();
    if (order[0] != gridDim.x - 1) return;
    double mine = 0;
    for (u32 i = threadIdx.x; i < gridDim.x + (BUG == 17 ? 1 : 0); i += THREADS) mine += args.partials[i];
    const double total = sum_of_block<BUG>(mine);
    if (threadIdx.x == 0 || BUG == 18) *args.sum = total;
}

#define SUM_KERNEL(bug) KERNEL(sum_##bug, THREADS, const Args args) { sum<bug>(args); }
SUM_KERNEL(0) SUM_KERNEL(1) SUM_KERNEL(2) SUM_KERNEL(3) SUM_KERNEL(4) SUM_KERNEL(5) SUM_KERNEL(6) SUM_KERNEL(7)
SUM_KERNEL(8) SUM_KERNEL(9) SUM_KERNEL(10) SUM_KERNEL(11) SUM_KERNEL(12) SUM_KERNEL(13) SUM_KERNEL(14) SUM_KERNEL(15)
SUM_KERNEL(16) SUM_KERNEL(17) SUM_KERNEL(18)
