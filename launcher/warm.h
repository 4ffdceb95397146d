// SPDX-License-Identifier: Apache-2.0
/* A start that goes on from a template: a VM that was saved before it had read what it is. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

/** What --warm=STATE,CRC,COUNT,FILE:SIZE:MTIME... says. */
struct warm {
    char state[128];   /* the file with the state of its devices */
    unsigned long crc; /* CRC-32 of that */
    size_t arguments;  /* so many at the end of the VMM's are for a warm start alone */
    const char *files; /* that have to be as they were: separated by commas; times in ns since the epoch */
};

/** Parse the value of the option. Returns 0, or -1; it has said why. */
int parse_warm(const char *value, struct warm *warm);

/** Open the state at FD_STATE. Returns 1, or 0 where there is none (any more), or it or one of the files is
 * not what it was, which is said: a cold start is left. */
int open_template(const struct warm *warm);

/** Note in RUNTIME/warm that this run goes on from a template, or, by its absence, that it does not. Who
 * reads that: hypeman-console, which has it boot where its guest gives no sign of life; the daemon; and
 * ExecStopPost=. Returns 0, or -1 with errno. */
int note_start(const char *runtime, const char *run, bool warm);

/** Does RUNTIME/stalled say that the guest of this run has not continued from its template, so that it is to
 * boot? Then it has said so. A note of another run is removed. */
bool has_stalled(const char *runtime);

/** Write what the guest needs to be another VM than the others of its template behind the configuration in
 * RUNTIME/config.img: the time, random numbers and its kernel command line. Returns 0, or -1; it has said
 * why.
 */
int write_start_block(const char *runtime, const char *line);
