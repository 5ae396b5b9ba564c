// Kernels that a device refuses, that nobody should write, or that fail in some schedules only.
#include "platform.cuh"

struct Args {
    const u32* in;
    u32* out;
};

KERNEL(misaligned, 32, const Args args) {
    const auto x = load<u32, 4>(args.in + 1);
    args.out[threadIdx.x] = x.v[0];
}
KERNEL(unwritten, 32, const Args args) { args.out[32 + threadIdx.x] = args.out[threadIdx.x]; }
KERNEL(much_shared, 32, const Args args) {
    SHARED(u32, much, 13 * 1024);
    much[threadIdx.x] = 1;
}
struct Big { u32 numbers[1024]; };
KERNEL(dynamic_shared, 32, const Args args) {
    SHARED_DYNAMIC(Big, big);
    big.numbers[threadIdx.x] = args.in[threadIdx.x];
    args.out[threadIdx.x] = big.numbers[threadIdx.x];
}

// Each warp draws a ticket; the first two warps and the last two meet at a barrier of their own. The lost update:
// another warp may come between the read and the write, both get the same ticket, and a barrier waits for ever.
KERNEL(lost_update, 128, const Args args) {
    SHARED(u32, tickets, 1);
    if (threadIdx.x == 0) tickets[0] = 0;
    __syncthreads();
    const u32 ticket = tickets[0];
    __syncwarp();
    if (threadIdx.x % 32 == 0) tickets[0] = ticket + 1;
    __syncwarp();
    named_barrier(1 + ticket / 2, 64);
    args.out[threadIdx.x] = ticket;
}
