// SPDX-License-Identifier: Apache-2.0
/*
 * How long lines are passed on after systemd's SIGTERM. A journald that takes nothing must not keep a unit
 * from ending; one that is slow has its time, for which systemd is notified (EXTEND_TIMEOUT_USEC=,
 * sd_notify(3)): it would end all by SIGKILL once TimeoutStopSec= is over, and call the run a failure.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* ms of a monotonic clock */
int64_t clock_ms(void);

/* $NOTIFY_SOCKET is where systemd is notified. */
void deadline_open(void);

/* The end is near: from now on there is a deadline. Again: no effect. */
void deadline_set(void);

/* Something was passed on: the deadline is as far away as at first, up to a last one. No effect where none is
   set. */
void deadline_extend(void);

/* Nothing more is passed on, but for what tells how much was not: as long as is kept for that. */
void deadline_grant_last_words(void);

bool deadline_is_over(void);

/* ms; `longest` where the deadline is later or not set. -1: without end. */
int64_t deadline_left(int64_t longest);
