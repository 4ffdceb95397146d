/* SPDX-License-Identifier: Apache-2.0 */
/* The VM's program, as init tells of it: the PID namespace in which what the agent executes runs, though the
 * agent does not, and what init says once it has started and when it has ended. */
#ifndef HYPEMAN_INSIDE_H
#define HYPEMAN_INSIDE_H

#include "reason.h"
#include "spawn.h"

/* Init is to tell on this socket of its program. Without it there is no such namespace, as in systemd mode.
 */
void inside_expect(int init);

/* To wait for what it says; -1: nothing comes, or nothing more. */
int inside_socket(void);

/* Take what it has said. */
void inside_hear(void);

/* The program's output has been passed on to its end: the VM may end. */
void inside_answer(void);

/* Where a program begins now. False with words if the VM's program has not been started yet, or has ended. */
bool inside_find(struct enclosure *enclosure, struct reason *why);

#endif
