/* SPDX-License-Identifier: Apache-2.0 */
/* The PID namespace of the VM's program, in which what the agent executes runs, though the agent does not. */
#ifndef HYPEMAN_INSIDE_H
#define HYPEMAN_INSIDE_H

#include "reason.h"
#include "spawn.h"

/* Init is to tell on this socket, by an int, which process is PID 1 there. Without it there is no such
 * namespace, as in systemd mode. */
void inside_expect(int init);

/* Where a program begins now. False with words if the VM's program has not been started yet, or has ended. */
bool inside_find(struct enclosure *enclosure, struct reason *why);

#endif
