/* SPDX-License-Identifier: Apache-2.0 */
/* The agent of exec mode may be started before there is a root: it waits until init admits it to one. What is
 * sent is a packet each, on the socket that is its gate. */
#ifndef HYPEMAN_ADMISSION_H
#define HYPEMAN_ADMISSION_H

#include "reason.h"

#include <stdbool.h>

/* What the agent says of itself there, a byte each. */
enum { AGENT_READY = 0, AGENT_WAITS = 1 };

/* Of init: admit it to this root, an fd of its folder. Where nobody hears it, the socket's end says so. */
void admission_give(int socket, int root);

/* Of the agent: say that it waits, and wait; then its root is that. False with words. */
bool admission_await(int socket, struct reason *why);

#endif
