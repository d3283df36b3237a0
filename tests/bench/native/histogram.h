/* Latencies in nanoseconds, in 64 steps per octave: 1.6 per cent at most beside the truth. */
#ifndef BENCH_HISTOGRAM_H
#define BENCH_HISTOGRAM_H

#include "common.h"

enum { STEPS = 64, STEP_BITS = 6, PLACES = (64 - STEP_BITS) * STEPS };

struct histogram {
    uint64_t total, sum, longest;
    uint32_t places[PLACES];
};

static inline void histogram_clear(struct histogram *h) {
    memset(h, 0, sizeof *h);
}

static inline void histogram_add(struct histogram *h, uint64_t value) {
    unsigned shift = 0;
    if (value >= 2 * STEPS) shift = 63u - (unsigned)__builtin_clzll(value) - STEP_BITS;
    h->places[shift * STEPS + (value >> shift)]++;
    h->total++;
    h->sum += value;
    if (value > h->longest) h->longest = value;
}

/* The middle of the step below which the share `part` (0 to 1) of all values lies. */
static inline uint64_t histogram_at(const struct histogram *h, double part) {
    uint64_t wanted = (uint64_t)(part * (double)h->total), seen = 0;
    for (unsigned place = 0; place < PLACES; place++) {
        seen += h->places[place];
        if (h->places[place] && seen > wanted) {
            unsigned shift = place < 2 * STEPS ? 0 : place / STEPS - 1;
            uint64_t low = (uint64_t)(place - shift * STEPS) << shift;
            return low + ((1ull << shift) >> 1);
        }
    }
    return h->longest;
}

#endif
