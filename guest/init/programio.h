/* SPDX-License-Identifier: Apache-2.0 */
/* What the program has as stdin, stdout and stderr: /dev/null and the console; or with `stdin` or `tty` pipes
 * or a terminal, whose other ends the agent has. */
#ifndef HYPEMAN_PROGRAMIO_H
#define HYPEMAN_PROGRAMIO_H

#include "config.h"
#include "identity.h"
#include "programnews.h"
#include "reason.h"

struct program_io {
    int stdio[3];             /* the program's */
    struct program_ends ends; /* the agent's */
};

#define PROGRAM_IO_NONE ((struct program_io){{-1, -1, -1}, PROGRAM_ENDS_NONE})

/* All of it is close-on-exec. What belongs to `who` can be opened again, as /dev/stdout. */
bool program_io_open(struct program_io *io, const struct config *config, const struct identity *who,
                     int console, struct reason *why);

/* The program is forked, and has its own. */
void program_io_forked(struct program_io *io);

void program_io_close(struct program_io *io);

#endif
