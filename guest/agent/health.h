/* SPDX-License-Identifier: Apache-2.0 */
/* What a HEALTH stream does, in a process of its own, whose standard input and output are the stream: a check
 * that is repeated, and reports of what has come of it. It ends when its other end is away. */
#ifndef HYPEMAN_HEALTH_H
#define HYPEMAN_HEALTH_H

#include "check.h"
#include "environment.h"
#include "groups.h"
#include "probe.h"

#include <stdint.h>

enum health_status { HEALTH_STARTING, HEALTH_HEALTHY, HEALTH_UNHEALTHY };

/* What was asked for. Strings are those of the records. */
struct health_order {
    struct check check;
    unsigned failures;  /* in a row that make it unhealthy */
    unsigned successes; /* in a row that make it healthy */
    int64_t start_ms;   /* in which failures do not count until it has passed once */
    int64_t confirm_ms; /* the longest time between two reports */
    struct identity who;
    struct environment_store store;
    struct enclosure enclosure;
    struct probe_place place;
    char **given;
    char **environment;
};

struct health {
    const struct health_order *order;
    int64_t began;
    enum health_status status;
    unsigned failures;
    unsigned successes;
    struct reason error; /* of the last attempt that has failed */
    /* what was reported last, and when */
    enum health_status told_status;
    struct reason told_error;
    int64_t told_at;
};

/* By the records of a HEALTH frame (valid ones, of which that of `check` is written to). `given` and
 * `environment` are allocations of the caller's to free, also of an order that was refused. */
bool health_parse(char *records, size_t size, struct health_order *order, struct reason *why);

/* The state before the first attempt. */
struct health health_begin(const struct health_order *order, int64_t now);

/* An attempt has ended; `why` (NULL: it has passed). True: that is to be reported. */
bool health_take(struct health *health, const struct reason *why, int64_t now);

/* Check and report until the other end is away. */
_Noreturn void health_run(const struct health_order *order, int from, int to);

#endif
