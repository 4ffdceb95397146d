// SPDX-License-Identifier: Apache-2.0
/* How long lines are passed on after systemd's SIGTERM. A journald that takes nothing must not keep a unit
   from ending; one that is slow has its time. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

/* ms of a monotonic clock */
int64_t clock_ms(void);

/* How many ms an end may take at most, while lines are taken: less than TimeoutStopSec=, past which systemd
   ends this too, and calls the run a failure. While none is taken, a third of it. Both are 4 s at least, and
   where this is not called. */
void deadline_open(int64_t longest);

/* The end is near: from now on there is a deadline. Again: no effect. */
void deadline_set(void);

/* Something was passed on: the deadline is as far away as at first, up to a last one. No effect where none is
   set, or it is over. */
void deadline_extend(void);

/* Nothing more is passed on, but for what tells how much was not: as long as is kept for that. */
void deadline_grant_last_words(void);

bool deadline_is_over(void);

/* ms; `longest` where the deadline is later or not set. -1: without end. */
int64_t deadline_left(int64_t longest);
