/* SPDX-License-Identifier: Apache-2.0 */
/* Which init an image has: systemd mode is for systemd. */
#ifndef HYPEMAN_INITKIND_H
#define HYPEMAN_INITKIND_H

#include "reason.h"

#include <stdbool.h>

/* Can this program, an absolute path, be the systemd of systemd mode, or lead to it? A script may, and where
 * the root has a systemd a program of any name but an init's; all else is refused, by what it is: the agent
 * would never be started, and the end never reported. */
bool init_is_systemd(const char *program, struct reason *why);

#endif
