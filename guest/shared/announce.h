/* SPDX-License-Identifier: Apache-2.0 */
/* One sentinel line from a process that is not init: to the console, and a copy to the report port. */
#ifndef HYPEMAN_ANNOUNCE_H
#define HYPEMAN_ANNOUNCE_H

#include <stddef.h>

/* Both are opened for this line alone: only one process at a time can have the port, and the tty's settings
 * are not ours. Nobody is told when a line cannot be said. */
void announce(const char *line, size_t size);

#endif
