// SPDX-License-Identifier: Apache-2.0
/* Does the guest of a warm start go on? The first line of its own is the sign of it. That is awaited in the
   VMM's own time, not in the host's: on a busy host a VMM that is well may get no CPU for seconds. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

enum {
    /* of the VMM's own time, without a sign */
    TRIAL_MS = 2000,
    /* between two looks at it */
    TRIAL_LOOK_MS = 100,
};

/* `program`: what becomes the VMM. `folder` has the launcher's note, `warm`, of which run a guest goes on
   from a template; `run`: this run's id, NULL: none. The strings are kept. */
void trial_begin(pid_t program, const char *folder, const char *run);

bool trial_is_on(void);

/* What the program has written: a line of the guest's own ends the trial. */
void trial_take(const char *bytes, size_t length);

/* Is it on, of a guest that goes on from a template? */
bool trial_is_warm(void);

/* To be called every TRIAL_LOOK_MS: is it lost? Own time is CPU time, and that in which all of a VMM's
   threads sleep, which none does that waits for a CPU or a disk. */
bool trial_is_lost(void);

/* The launcher's note is another one from now on: the guest of this run did not continue (`stalled`). 0 or -1
   with errno. */
int trial_note_loss(void);
