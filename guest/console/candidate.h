// SPDX-License-Identifier: Apache-2.0
/* A program that is not yet the unit's main process: whose end is not the unit's, until `candidate_promote`.
   Where this one, which is the main process until then, is killed, the program is too. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

struct candidate {
    pid_t pid;
    pid_t parent;   /* a process of this program, which waits for it; -1: systemd does */
    int status;     /* what to end with, where there is no parent (waitpid(2)) */
    int descriptor; /* a pidfd */
    int between;    /* to the parent, which sees by it that this process has ended */
    int manager;    /* systemd's notification socket, while it has to be told of the program; else -1 */
};

/* Start PROGRAM with `output` for standard output and standard error. False with errno. */
bool candidate_start(struct candidate *candidate, char **program, int output);

/* It shall be the unit's main process: `candidate_promote` is to be called when `manager` can be written to.
   False with errno. */
bool candidate_present(struct candidate *candidate);

/* Make it the unit's main process (sd_notify(3)), if it has not ended: systemd has it for a child of its own
   from then on. Does not wait: `manager` is still there where it has to be called again. False with errno:
   this one still is the main process. */
bool candidate_promote(struct candidate *candidate);

/* Send it a signal. May be called by a signal handler. */
void candidate_signal(const struct candidate *candidate, int number);

/* End it by SIGKILL, if it lives. */
void candidate_kill(const struct candidate *candidate);

/* After its end: end as it has. How one has ended that was promoted systemd knows; where it ended before
   systemd took that, nobody does. Then this ends with 0, and ExecStopPost= judges by what the guest has said.
 */
_Noreturn void candidate_follow(struct candidate *candidate);
