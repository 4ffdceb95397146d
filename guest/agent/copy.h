/* SPDX-License-Identifier: Apache-2.0 */
/* What a FILES stream does, in a process of its own, whose standard input and output are the stream: a slow
 * disk or a tree without end holds nobody else up. It ends by itself when its other end is away. */
#ifndef HYPEMAN_COPY_H
#define HYPEMAN_COPY_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>

enum copy_operation { COPY_STAT, COPY_OUT, COPY_IN };

struct copy_order {
    enum copy_operation operation;
    const char *path;
    bool follow;
};

/* By the records of a FILES frame (valid ones), whose bytes it keeps to. */
bool copy_parse(const char *records, size_t size, struct copy_order *order, struct reason *why);

/* Do it, and say at the end what came of it. False if that could not be said. */
bool copy_run(const struct copy_order *order, int from, int to);

/* Its parts. */
bool copy_stat(const struct copy_order *order, int to);
bool copy_out(const struct copy_order *order, int to);
bool copy_in(const struct copy_order *order, int from, int to);

#endif
