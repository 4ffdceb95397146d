/* SPDX-License-Identifier: Apache-2.0 */
/* Deadlines: milliseconds of CLOCK_MONOTONIC; NO_DEADLINE never comes. */
#ifndef HYPEMAN_CLOCK_H
#define HYPEMAN_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define NO_DEADLINE INT64_MAX

int64_t clock_ms(void);
struct timespec clock_boottime(void);
struct timespec clock_realtime(void);

/* What the host says of it: nanoseconds since the epoch. */
bool clock_parse(const char *text, struct timespec *clock);

/* Set CLOCK_REALTIME: 0, or -1 with errno. One that differs by no more than the way of a message stays: it
 * would go back by that each time that the host compares. */
int clock_set(const struct timespec *now);

/* What is left, as the timeout that poll and epoll_wait take: -1 for NO_DEADLINE, 0 once it has passed. */
int deadline_timeout(int64_t deadline);

#endif
