/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_SYSTEM_H
#define HYPEMAN_SYSTEM_H

#include "reason.h"

#include <stdbool.h>

/* The host name; /etc/hostname and /etc/hosts where the image has none, or a /etc/hosts without that name;
 * and the loopback interface. */
bool system_name(const char *name, struct reason *why);

/* The agent's and init's own wish not to be killed for memory. */
void system_protect(void);

#endif
