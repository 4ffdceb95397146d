// SPDX-License-Identifier: Apache-2.0
/* A program that is not yet the unit's main process: whose end is not the unit's, until `candidate_promote`.
 */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct candidate {
    pid_t pid;
    pid_t parent;   /* a process of this program, which waits for it */
    int descriptor; /* a pidfd */
};

/* Start PROGRAM with `output` for standard output and standard error. False with errno. */
bool candidate_start(struct candidate *candidate, char **program, int output);

/* Make it the unit's main process (sd_notify(3)): systemd has it for a child of its own from then on. False
 * with errno: this one still is that. */
bool candidate_promote(struct candidate *candidate);

/* End it by SIGKILL, if it lives. */
void candidate_kill(const struct candidate *candidate);

/* After its end: end as it has. One that was promoted and has ended before systemd has taken that has failed.
 */
_Noreturn void candidate_follow(const struct candidate *candidate);
