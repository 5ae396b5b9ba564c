// The search of losses that choose the nearest row beyond a positive, the nearest of all, or the farthest: products of strips,
// of which a thread keeps the least of its columns for each pair in registers.
//
// Distances are compared as bits: of numbers from 0 on these are in order. With t, the bits of a pair's distance,
//     min(d - t - 1), wrapping around,  is the nearest beyond t:  one instruction a comparison on Hopper.
// A number is that of the least distance in a group: the columns of one lane in one tile. `finish` takes the differences of the
// rows of the group that is left. Whatever else the products cannot tell from it is decided here, by the difference of rows:
//   what may be beyond a pair's distance or not, and what is as near as another, within the error of both.
// So the choice is that of the differences, whatever the order of the tiles, the blocks and the offers.
//
// Of lower precision, where that error is most of a distance, the least number counts, and of equal ones the lowest index.
//
// P, everywhere below: the precision. S: a StripShape. R: the rule.
#pragma once

// Pairs of a row whose numbers a thread keeps at a time.
constexpr int PAIRS = 8;
// A number where nothing is beyond. All that are beyond are smaller, and what is not beyond is larger, both by more than any
// Window::bits.
constexpr u32 NOT_BEYOND = 0x80300000;
constexpr u32 INFINITE = 0x7f800000;  // the bits of infinity, which nothing is beyond

// How far apart two distances of a row may be that are the same but for the errors of products and differences.
//
// The number of a product is off by args.error (norm + norm_j) at most; norm_j is no more than that of the longest row, nor
// than 2 (norm + d), as no row at distance d from this one is longer. Distances by difference are off by args.direct d.
struct Window {
    float error, direct, norm, greatest;

    // norm: the squared norm of the row.
    DEVICE Window(const Args& args, float norm)
        : error(args.error), direct(args.direct), norm(norm), greatest(__uint_as_float(args.sides.anchors.survey->tickets[3])) {}
    // Whether no product or norm has overflowed. NaN has.
    DEVICE bool is_ordinary() const { return norm + greatest < 0x1p120f; }
    // By how much a distance of about d may be off.
    DEVICE float at(float d) const {
        if (error == 0.f) return 0.f;
        d = fmaxf(d, 0.f);
        return fmaf(direct, d, error * fminf(norm + greatest, fmaf(2.f, d, 3.f * norm))) + 0x1p-120f;
    }
    // The same of any distance of the row.
    DEVICE float most() const { return error == 0.f ? 0.f : fmaf(direct, 2.f, error) * (norm + greatest) + 0x1p-120f; }
    // What is added to all distances of the row: none is below 0 then, and bits have a limit on how many are within an error.
    DEVICE float bias() const { return 8.f * at(0.f); }
    // The bits of the distance that candidates of a pair at distance t may be beyond. t: NaN where there is no pair.
    DEVICE u32 beyond(float t) const {
        if (!(t < __uint_as_float(INFINITE)) || !is_ordinary()) return INFINITE;
        const float from = t - at(t) + bias();
        return from < 0.f ? 0xffffffff : __float_as_uint(from);  // of lower precision: all are beyond
    }
    // At most so many bits are as far as twice the error apart, of distances from t on.
    DEVICE u32 bits(float t) const { return error == 0.f ? 0 : u32(0x1p25f * at(t) / (t - at(t) + bias())) + 4; }
};

// The columns of a group that are candidates of an anchor.
struct Group {
    u32 first, lane, count;  // the first column of the tile, the lane of the strip, and how many it has
    u32 warp_columns;

    // group: tile * lanes + lane of the strip.
    DEVICE Group(const Args& args, u32 group) : warp_columns(args.warp_columns) {
        const u32 lanes = 4 * args.columns / args.warp_columns;
        first = group / lanes * args.columns;
        lane = group % lanes;
        count = args.warp_columns / 4;
    }
    DEVICE u32 column(u32 q) const { return first + column_of_lane(warp_columns, lane, q); }
    // f(column, d): called for each candidate, by a warp, with its distance by difference. x: the anchor's elements.
    // T: the type of the rows. other(column): one of the rows' elements.
    template <class T, class O, class F> DEVICE void each(const Args& args, u32 row, const Row<T>& x, u32 kind, O other, F f) const {
        constexpr int TOGETHER = 4;
        const Sides& sides = args.sides;
        const u32 own = sides.first[row], size = sides.size_of_class(row);
#pragma unroll 1
        for (u32 q = 0; q < count; q += TOGETHER) {
            Row<T> y[TOGETHER];
            float d[TOGETHER];
#pragma unroll
            for (int k = 0; k < TOGETHER; ++k) y[k] = other(column(q + k) < sides.others.rows ? column(q + k) : 0);
            direct_distances(x, y, sides.others.dim, kind, d);
#pragma unroll
            for (int k = 0; k < TOGETHER; ++k)
                if (column(q + k) < sides.others.rows && column(q + k) - own >= size) f(column(q + k), d[k]);
        }
    }
    // The index of the candidate whose distance is nearest to `d`, of lower precision the one that the group's number is of; of
    // equal ones the lowest. NONE without a candidate.
    template <class T, class O> DEVICE u32 nearest_to(const Args& args, u32 row, const Row<T>& x, u32 kind, O other, float d) const {
        u32 index = NONE;
        float off = 0;
        each(args, row, x, kind, other, [&](u32 column, float its) {
            const u32 at = args.sides.others.order[column];
            const float by = fabsf(its - d);
            if (index == NONE || by < off || (by == off && at < index)) {
                index = at;
                off = by;
            }
        });
        return index;
    }
};

// A block's search in its tiles for the pairs of its rows, PAIRS of each at a time.
template <class P, class S, Rule R> struct Search {
    using Strip = ::Strip<P, S>;
    static constexpr int ROWS = Strip::ROWS, COLUMNS = Strip::COLUMNS, LANES = Strip::LANES;
    static constexpr bool EXACT = P::planes == 2;         // whether products tell how much they may be off
    static constexpr int KEPT = R == SEMI_HARD ? PAIRS : 1;  // an array must have some
    const Args& args;
    const Sides& sides;
    u32 base, first_pair;
    // By row of this thread, and pair: -1 - the bits that it looks beyond, and the least number so far with its tile.
    u32 minus[ROWS][KEPT], best[ROWS][KEPT], tile_of[ROWS][KEPT];
    // By row: the distance of the nearest, or less that of the farthest; and its tile.
    float edge[ROWS];
    u32 edge_tile[ROWS];
    // What is odd, at most: of numbers Window::bits, and of the nearest or farthest twice Window::most. One of each, as registers
    // are few: `decide` looks closer.
    u32 bits;
    float slack;

    DEVICE u32 row_of(int r) const { return base + Strip::row_of(r); }
    DEVICE u32 kind() const { return compared_kind<R>(args); }
    // The distance of a pair of a row, as products have it; NaN if there is none.
    DEVICE float pair(u32 row, u32 k) const {
        if (row >= sides.anchors.rows || first_pair + k >= sides.size_of_class(row)) return nan_value<float>();
        return doubled(args) * args.d_ap[args.start[row] + first_pair + k];
    }

    DEVICE Search(const Args& args, u32 base, u32 first_pair) : args(args), sides(args.sides), base(base), first_pair(first_pair), bits(0), slack(0.f) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const u32 row = row_of(r);
            const Window window(args, row < sides.anchors.rows ? sides.anchors.norm[row] : nan_value<float>());
            edge[r] = __uint_as_float(INFINITE);
            edge_tile[r] = 0;
            if (window.is_ordinary()) slack = fmaxf(slack, 2.f * window.most());
            float nearest = __uint_as_float(INFINITE);
#pragma unroll
            for (int k = 0; k < KEPT; ++k) {
                const float t = R == SEMI_HARD ? pair(row, k) : nan_value<float>();
                nearest = fminf(nearest, t);
                minus[r][k] = ~window.beyond(t);
                best[r][k] = NOT_BEYOND;
                tile_of[r][k] = 0;
            }
            if (nearest < __uint_as_float(INFINITE) && window.is_ordinary()) bits = bits < window.bits(nearest) ? window.bits(nearest) : bits;
        }
    }

    // Takes row r of a tile: its distances are where the strip has its products. Returns the columns, a bit for each, that are to
    // be decided by difference.
    DEVICE u32 take(Strip& strip, u32 tile, int r) {
        u32 least[KEPT];
        float end = __uint_as_float(INFINITE);
#pragma unroll
        for (int k = 0; k < KEPT; ++k) least[k] = 0xffffffff;
#pragma unroll
        for (int q = 0; q < COLUMNS; ++q) {
            const float d = strip.product(r, q);
            end = fminf(end, R == SEMI_HARD ? -d : d);
            if constexpr (R == SEMI_HARD)
#pragma unroll
                for (int k = 0; k < KEPT; ++k) least[k] = add_min(__float_as_uint(d), minus[r][k], least[k]);
        }
        u32 decided = 0;
        bool odd = fabsf(end - edge[r]) <= slack;
        if constexpr (R == SEMI_HARD)
#pragma unroll
            for (int k = 0; k < KEPT; ++k) odd = odd | is_odd(r, k, least[k]);
        if (__any_sync(0xffffffff, odd)) decided = decide(strip, tile, r, least, end);
        if constexpr (R == SEMI_HARD)
#pragma unroll
            for (int k = 0; k < KEPT; ++k) {
                tile_of[r][k] = least[k] < best[r][k] ? tile : tile_of[r][k];
                best[r][k] = least[k] < best[r][k] ? least[k] : best[r][k];
            }
        edge_tile[r] = end < edge[r] ? tile : edge_tile[r];
        edge[r] = fminf(edge[r], end);
        return decided;
    }
    // Whether the least of a group may be beyond the pair's distance or not, or may be as near as the least before.
    DEVICE bool is_odd(int r, int k, u32 least) const {
        // Not ||, for which there would be branches.
        return (EXACT & (least < bits)) | (least - best[r][k] + bits < 2 * bits + 1);
    }

    // Offers the columns of this thread whose bits are set to `to`, with `high` as the high half of their keys.
    static DEVICE void offer_equal(u64* to, u32 high, const u32* order, u32 tile, u32 columns) {
        for (; columns; columns &= columns - 1)
            atomicMin(to, key_of(high, order[tile * S::columns + Strip::column_of(Strip::lane(), u32(__ffs(int(columns))) - 1)]));
    }
    // What `take` has found odd: the columns that are to be decided by difference; the least numbers lose them. Of lower
    // precision, where only equal numbers are odd, they are offered at once.
    DEVICE u32 decide(Strip& strip, u32 tile, int r, u32 (&least)[KEPT], float& end) const {
        const bool is_row = row_of(r) < sides.anchors.rows;
        const u32 row = is_row ? row_of(r) : sides.anchors.rows - 1;
        const Window window(args, sides.anchors.norm[row]);
        const float bias = window.bias();
        u32 decided = 0;
        if (is_row && fabsf(end - edge[r]) <= slack) {
            const float off = 2.f * window.at(fmaxf(fabsf(end), fabsf(edge[r])) - bias);
            if (fabsf(end - edge[r]) <= off) {
#pragma unroll
                for (int q = 0; q < COLUMNS; ++q)
                    if ((R == SEMI_HARD ? -strip.product(r, q) : strip.product(r, q)) <= edge[r] + off) decided |= 1u << q;
                end = __uint_as_float(INFINITE);
                if constexpr (!EXACT) {
                    offer_equal(&args.row_key[row], in_order(edge[r]), sides.others.order, tile, decided);
                    decided = 0;
                }
            }
        }
        if constexpr (R == SEMI_HARD) {
            u32 odd = 0;
#pragma unroll
            for (int k = 0; k < KEPT; ++k) odd |= u32(is_odd(r, k, least[k])) << k;
#pragma unroll 1
            for (u32 any = __reduce_or_sync(0xffffffff, odd); any; any &= any - 1) {
                const u32 k = u32(__ffs(int(any))) - 1;
                u32 its_minus = 0, its_best = 0;
#pragma unroll
                for (int i = 0; i < KEPT; ++i) {
                    its_minus = k == u32(i) ? minus[r][i] : its_minus;
                    its_best = k == u32(i) ? best[r][i] : its_best;
                }
                if (!(odd >> k & 1)) continue;
                // Numbers below `doubtful` may be beyond or not.
                const float t = pair(row, k), best_d = __uint_as_float(its_best - its_minus);
                const u32 doubtful = EXACT && t == t ? __float_as_uint(t + window.at(t) + bias) + its_minus + 1 : 0;
                u32 certain = 0xffffffff, below = doubtful;
#pragma unroll
                for (int q = 0; q < COLUMNS; ++q) {
                    const u32 number = __float_as_uint(strip.product(r, q)) + its_minus;
                    certain = number >= doubtful && number < certain ? number : certain;
                }
                const float d = __uint_as_float(certain - its_minus);
                if (certain < NOT_BEYOND && its_best < NOT_BEYOND && fabsf(d - best_d) <= 2.f * window.at(fmaxf(d, best_d) - bias)) {
                    below = its_best + window.bits(t) + 1;
                    certain = NOT_BEYOND;
                }
                u32 columns = 0;
#pragma unroll
                for (int q = 0; q < COLUMNS; ++q)
                    if (__float_as_uint(strip.product(r, q)) + its_minus < below) columns |= 1u << q;
                if constexpr (EXACT) decided |= columns;
                else offer_equal(&args.key[args.start[row] + first_pair + k], in_order(best_d), sides.others.order, tile, columns);
#pragma unroll
                for (int i = 0; i < KEPT; ++i) least[i] = k == u32(i) ? certain : least[i];
            }
        }
        return decided;
    }
    // Offers the row `column`, `d` away, to all that an anchor looks for, by a warp.
    DEVICE void offer(u32 row, u32 column, float d) const {
        const u32 lane = threadIdx.x % 32, index = sides.others.order[column];
        if (lane == 0) atomicMin(&args.row_key[row], key_of(R == SEMI_HARD ? ~in_order(d) : in_order(d), index));
        if constexpr (R == SEMI_HARD) {
            const u64 start = args.start[row];
            for (u32 k = lane; k < sides.size_of_class(row); k += 32)
                if (d > args.d_ap[start + k]) atomicMin(&args.key[start + k], key_of(in_order(d), index));
        }
    }
    // Decides columns of the rows of the warp's threads by difference. columns: a bit for each of this thread's, by row.
    DEVICE void decide_all(u32 tile, const u32 (&columns)[ROWS]) const {
#pragma unroll 1
        for (u32 r = 0; r < ROWS; ++r) {
            u32 mine = 0;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) mine = r == u32(i) ? columns[i] : mine;
            for (u32 lanes = __ballot_sync(0xffffffff, mine != 0); lanes; lanes &= lanes - 1) {
                const u32 lane = u32(__ffs(int(lanes))) - 1, row = __shfl_sync(0xffffffff, base + Strip::row_of(int(r)), int(lane));
                const u32 of_strip = __shfl_sync(0xffffffff, Strip::lane(), int(lane));
                const Row<float> x = kept_row(sides.anchors, row);
                for (u32 theirs = __shfl_sync(0xffffffff, mine, int(lane)); theirs; theirs &= theirs - 1) {
                    const u32 column = tile * S::columns + Strip::column_of(of_strip, u32(__ffs(int(theirs))) - 1);
                    offer(row, column, direct_distance(x, kept_row(sides.others, column), sides.others.dim, kind()));
                }
            }
        }
    }

    // What a block has found for its rows, in shared memory: for each row and what it looks for the keys of all lanes, and the one
    // that other blocks had before.
    static constexpr u32 ENTRIES = (R == SEMI_HARD ? PAIRS : 0) + 1, HELD = LANES + 1, OF_SLOT = S::rows / ROWS;
    // Rows r of all threads that there is room for at a time.
    static constexpr u32 SLOTS = sizeof(typename Strip::Shared) >= ROWS * OF_SLOT * ENTRIES * HELD * 8 ? ROWS : ROWS / 2;
    static_assert(sizeof(typename Strip::Shared) >= SLOTS * OF_SLOT * ENTRIES * HELD * 8, "room for half of the rows");

    // The row of item `item` of those that are in shared memory, with rows r from `from` on.
    DEVICE u32 row_of_item(u32 item, u32 from) const {
        const u32 r = from + item / ENTRIES / OF_SLOT, i = item / ENTRIES % OF_SLOT;
        return base + i / 8 * S::warp_rows + r / 2 * 16 + r % 2 * 8 + i % 8;
    }
    // Where the keys of an item go: to `equal` those of lower precision that are as near as the least.
    DEVICE u64* found_of(u32 row, u32 entry) const { return entry == ENTRIES - 1 ? &args.row_found[row] : &args.found[args.start[row] + first_pair + entry]; }
    DEVICE u64* equal_of(u32 row, u32 entry) const { return entry == ENTRIES - 1 ? &args.row_key[row] : &args.key[args.start[row] + first_pair + entry]; }

    // Offers what the block has found, once its tiles are done: the least key of each row and what it looks for, and a key that
    // is as near, of a lane or of another block, is decided by difference. place: shared memory that nothing else needs.
    DEVICE void settle(u64* place) const {
        constexpr u32 ITEMS = SLOTS * OF_SLOT * ENTRIES, EACH = (ITEMS + S::threads - 1) / S::threads;
        // `bits` and `slack` of all threads, behind the keys.
        static_assert(sizeof(typename Strip::Shared) >= ITEMS * HELD * 8 + 8, "room for two numbers more");
        u32* const odd = reinterpret_cast<u32*>(reinterpret_cast<u8*>(place) + sizeof(typename Strip::Shared)) - 2;
        // Not known before the tiles: registers that hold what follows from it would be taken from them.
        const u32 thread = u32(kept(threadIdx.x)), mine = thread / 32 / S::across * 8 + thread % 32 / 4, lane = thread / 32 % S::across * 4 + thread % 4;
        __syncthreads();  // all threads are done with the place
        if (thread < 2) odd[thread] = 0;
#pragma unroll
        for (u32 from = 0; from < ROWS; from += SLOTS) {
            __syncthreads();  // all threads are done with the keys before, and the zeros are there
            if (from == 0) {
                atomicMax(&odd[0], bits);
                atomicMax(&odd[1], __float_as_uint(slack));
            }
#pragma unroll
            for (u32 r = 0; r < SLOTS; ++r) {
                u64* const to = place + ((r * OF_SLOT + mine) * ENTRIES) * HELD + lane;
                if constexpr (R == SEMI_HARD)
#pragma unroll
                    for (u32 k = 0; k < PAIRS; ++k) {
                        const u32 number = best[from + r][k];
                        to[k * HELD] = number < NOT_BEYOND ? key_of(number, tile_of[from + r][k] * LANES + lane) : NO_KEY;
                    }
                const float end = edge[from + r];
                to[(ENTRIES - 1) * HELD] = end < __uint_as_float(INFINITE) ? key_of(in_order(end), edge_tile[from + r] * LANES + lane) : NO_KEY;
            }
            __syncthreads();  // the keys are there
            // All offers are on their way at a time.
            u64 old[EACH];
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
                const u32 item = i * S::threads + thread, row = row_of_item(item, from);
                old[i] = NO_KEY;
                if (item >= ITEMS || row >= sides.anchors.rows) continue;
                u64 least = NO_KEY;
#pragma unroll
                for (u32 l = 0; l < LANES; ++l) {
                    const u64 key = place[item * HELD + l];
                    least = key < least ? key : least;
                }
                if (least != NO_KEY) old[i] = atomicMin(found_of(row, item % ENTRIES), least);
            }
            u32 near = 0;
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
                const u32 item = i * S::threads + thread;
                if (item >= ITEMS || row_of_item(item, from) >= sides.anchors.rows) continue;
                u64 first = old[i], keys[LANES];
#pragma unroll
                for (u32 l = 0; l < LANES; ++l) {
                    keys[l] = place[item * HELD + l];
                    first = keys[l] < first ? keys[l] : first;
                }
                const bool is_edge = item % ENTRIES == ENTRIES - 1;
                const auto is_near = [&](u64 key) {
                    const bool is = is_edge ? from_order(u32(key >> 32)) - from_order(u32(first >> 32)) <= __uint_as_float(odd[1])
                                            : u32(key >> 32) - u32(first >> 32) <= odd[0];
                    return is & (key != NO_KEY) & (key != first);
                };
                bool any = is_near(old[i]);
#pragma unroll
                for (u32 l = 0; l < LANES; ++l) any = any | is_near(keys[l]);
                place[item * HELD + LANES] = old[i];
                near |= u32(any) << i;
            }
            __syncwarp();  // what other blocks had before is there
            if (!__any_sync(0xffffffff, near != 0)) continue;
#pragma unroll 1
            for (u32 i = 0; i < EACH; ++i)
#pragma unroll 1
                for (u32 lanes = __ballot_sync(0xffffffff, near >> i & 1); lanes; lanes &= lanes - 1) {
                    const u32 item = i * S::threads + thread / 32 * 32 + u32(__ffs(int(lanes))) - 1;
                    settle_item(row_of_item(item, from), item % ENTRIES, place + item * HELD);
                }
        }
    }
    // Decides what is as near as the least of an item's keys, by a warp.
    DEVICE void settle_item(u32 row, u32 entry, const u64* keys) const {
        const Window window(args, sides.anchors.norm[row]);
        const float bias = window.bias();
        const bool is_edge = entry == ENTRIES - 1;
        const u32 minus = is_edge ? 0 : ~window.beyond(pair(row, entry));
        const auto distance = [&](u64 key) { return is_edge ? from_order(u32(key >> 32)) : __uint_as_float(u32(key >> 32) - minus); };
        u64 first = NO_KEY;
        for (u32 l = 0; l < HELD; ++l) first = keys[l] < first ? keys[l] : first;
        const Row<float> x = kept_row(sides.anchors, row);
        const auto other = [&](u32 column) { return kept_row(sides.others, column); };
#pragma unroll 1
        for (u32 l = 0; l < HELD; ++l) {
            const u64 key = keys[l];
            const float d = distance(key), least = distance(first);
            if (key == NO_KEY || key == first || !(fabsf(d - least) <= 2.f * window.at(fmaxf(fabsf(d), fabsf(least)) - bias))) continue;
            if constexpr (EXACT) {
                Group(args, u32(key)).each(args, row, x, kind(), other, [&](u32 column, float its) { offer(row, column, its); });
            } else {
                const u32 index = Group(args, u32(key)).nearest_to(args, row, x, kind(), other, fabsf(d) / doubled(args));
                if (threadIdx.x % 32 == 0) atomicMin(equal_of(row, entry), key_of(in_order(d), index));
            }
        }
    }

    // A block takes a block of rows with every `splits`-th tile of columns, and again for each PAIRS pairs that a row has.
    static DEVICE void run(const Args& args) {
        SHARED_DYNAMIC(typename Strip::Shared, shared);
        const Sides& sides = args.sides;
        const Batch &a = sides.anchors, &b = sides.others;
        if (!fits(args)) return;
        const u32 block = blockIdx.x / args.splits, split = blockIdx.x % args.splits, base = block * S::rows;
        const u32 tiles = (b.rows + S::columns - 1) / S::columns, last = base + S::rows < a.rows ? base + S::rows - 1 : a.rows - 1;
        // Rows lie in class order: those of the rows' own classes follow each other.
        const u32 own_begin = sides.first[base], own_end = sides.end[last];
        u32 pairs = 1;
        if constexpr (R == SEMI_HARD)
            for (u32 row = base + threadIdx.x % 32; row <= last; row += 32) pairs = pairs < sides.size_of_class(row) ? sides.size_of_class(row) : pairs;
        pairs = __reduce_max_sync(0xffffffff, pairs);
#pragma unroll 1
        for (u32 first_pair = 0; first_pair < pairs; first_pair += PAIRS) {
            Search search(args, base, first_pair);
            float scale[Strip::ROWS], norm[Strip::ROWS];
#pragma unroll
            for (int r = 0; r < Strip::ROWS; ++r) {
                const u32 row = base + Strip::row_of(r) < a.rows ? base + Strip::row_of(r) : last;
                scale[r] = a.scale[row];
                norm[r] = a.norm[row] + Window(args, a.norm[row]).bias();
            }
            Strip strip(shared, a.operand(), b.operand(), b.terms, block, split, args.splits, tiles);
#pragma unroll 1
            for (u32 tile = split; tile < tiles; tile += args.splits) {
                strip.take();
                // The distances, in place of the products.
#pragma unroll
                for (int j = 0; j < Strip::COLUMN_FRAGMENTS; ++j) {
                    const Pack<float, 4> terms = strip.terms_of(j);
#pragma unroll
                    for (int r = 0; r < Strip::ROWS; ++r)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            float& product = strip.product(r, 2 * j + e);
                            product = fmaf(product * terms.v[2 * e + 1], scale[r], norm[r] + terms.v[2 * e]);
                            if (!EXACT) product = fmaxf(product, 0.f);
                        }
                }
                // All threads agree. A vote tells the compiler, and who counts instructions, that they do.
                const bool meets_own = tile * S::columns < own_end && (tile + 1) * S::columns > own_begin;
                if (__any_sync(0xffffffff, meets_own || (tile + 1) * S::columns > b.rows)) {
                    // NaN whose bits are beyond nothing.
#pragma unroll
                    for (int r = 0; r < Strip::ROWS; ++r) {
                        const u32 row = base + Strip::row_of(r) < a.rows ? base + Strip::row_of(r) : last;
                        const u32 first = sides.first[row], size = sides.size_of_class(row);
#pragma unroll
                        for (int q = 0; q < Strip::COLUMNS; ++q) {
                            const u32 column = tile * S::columns + Strip::column_of(Strip::lane(), q);
                            if (column - first < size || column >= b.rows) strip.product(r, q) = __uint_as_float(0xffffffff);
                        }
                    }
                }
                u32 decided[Strip::ROWS], any = 0;
#pragma unroll
                for (int r = 0; r < Strip::ROWS; ++r) {
                    decided[r] = search.take(strip, tile, r);
                    any |= decided[r];
                }
                if (__any_sync(0xffffffff, any != 0)) search.decide_all(tile, decided);
            }
            copy_async_wait<0>();
            search.settle(reinterpret_cast<u64*>(&shared));
            __syncthreads();  // all threads are done with the block's shared memory
        }
    }
};
