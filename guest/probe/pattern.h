/* SPDX-License-Identifier: Apache-2.0 */
/* The patterns of `ready: log` (hypemand/config/patterns.py has the dialect), matched by simulation of a
 * nondeterministic automaton: a byte costs at most one look at each instruction of the pattern, whatever came
 * before it, and no line is kept. */
#ifndef HYPEMAN_PATTERN_H
#define HYPEMAN_PATTERN_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PATTERN_MAX = 256, /* bytes */
    PATTERN_DEPTH_MAX = 16,
    PATTERN_CODE_MAX = 3 * PATTERN_MAX + 2,
    PATTERN_SETS_MAX = PATTERN_MAX / 2,
};

struct pattern_step {
    uint8_t kind;
    uint8_t value; /* the byte, or the number of the set */
    int16_t first; /* where it goes on, from here */
    int16_t second;
};

struct pattern {
    struct pattern_step code[PATTERN_CODE_MAX];
    size_t size;
    uint8_t sets[PATTERN_SETS_MAX][32];
    size_t set_count;
};

struct matcher {
    const struct pattern *pattern;
    uint16_t states[PATTERN_CODE_MAX];
    size_t state_count;
    uint32_t turn;
    uint32_t seen[PATTERN_CODE_MAX]; /* in which turn a step was reached last */
    bool carriage_return;            /* one came, which may belong to the line's end */
    bool matched;
};

bool pattern_compile(struct pattern *pattern, const char *text, struct reason *why);

/* Begin at the beginning of a line. */
void matcher_start(struct matcher *matcher, const struct pattern *pattern);

/* The next byte of the text. True once a line has matched, and from then on. */
bool matcher_feed(struct matcher *matcher, uint8_t byte);

#endif
