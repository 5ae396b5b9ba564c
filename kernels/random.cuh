// The random choices of mined losses. src/random.rs has the same functions under the same names, which give the same
// numbers, and says what they are for.
#pragma once
#include "platform.cuh"

struct U32x2 { u32 x, y; };

// MurmurHash3's 32-bit finalizer.
DEVICE u32 fmix(u32 x) {
    x ^= x >> 16;
    x *= 0x85ebca6b;
    x ^= x >> 13;
    x *= 0xc2b2ae35;
    return x ^ x >> 16;
}

// What the element of column c adds to both words of its row's hash; `bits` are those of the element as f32.
DEVICE U32x2 hash_of_element(u32 bits, u32 c) {
    return {fmix(bits + 0x9e3779b9 * (c + 1)), fmix(fmix(bits) ^ 0x85ebca77 * (c + 1))};
}

// Philox4x32-10.
struct Philox { u32 word[4]; };
DEVICE Philox philox(u32 c0, u32 c1, u32 c2, u32 c3, U32x2 key) {
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u64 p0 = u64(c0) * 0xd2511f53, p1 = u64(c2) * 0xcd9e8d57;
        c0 = u32(p1 >> 32) ^ c1 ^ key.x;
        c1 = u32(p1);
        c2 = u32(p0 >> 32) ^ c3 ^ key.y;
        c3 = u32(p0);
        key.x += 0x9e3779b9;
        key.y += 0xbb67ae85;
    }
    return {{c0, c1, c2, c3}};
}

// The key of all draws of one call.
DEVICE U32x2 session_of(u64 seed, i64 step) {
    const Philox p = philox(u32(step), u32(u64(step) >> 32), 0, 0, {u32(seed), u32(seed >> 32)});
    return {p.word[0], p.word[1]};
}
// What a pair of hashed rows, anchor and positive, adds to the priorities of its candidates.
DEVICE u32 pair_word(U32x2 session, U32x2 anchor, U32x2 positive) {
    return philox(anchor.x, anchor.y, positive.x, positive.y, session).word[0];
}
// What a hashed row adds to its priorities as a negative.
DEVICE u32 row_word(U32x2 session, U32x2 row) { return philox(row.x, row.y, 1, 0, session).word[1]; }
// The candidate with the least priority is chosen.
DEVICE u32 priority(u32 pair, u32 row) { return fmix(pair ^ row); }
