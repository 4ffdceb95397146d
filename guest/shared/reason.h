/* SPDX-License-Identifier: Apache-2.0 */
/* Why something could not be done, in words that end up in an exit report or an ERROR frame. */
#ifndef HYPEMAN_REASON_H
#define HYPEMAN_REASON_H

#include <stdbool.h>

enum { REASON_MAX = 512 };

struct reason {
    char words[REASON_MAX + 1];
};

/* Fill in the words, cut at REASON_MAX. Always false, so that a failing function can `return refuse(...)`. */
__attribute__((format(printf, 2, 3))) bool refuse(struct reason *why, const char *format, ...);

#endif
