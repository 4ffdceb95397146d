/* SPDX-License-Identifier: Apache-2.0 */
/* The guest's half of the sentinel grammar of docs/protocol.md: the one place that formats such lines. */
#ifndef HYPEMAN_SENTINEL_H
#define HYPEMAN_SENTINEL_H

#include <stddef.h>
#include <time.h>

enum {
    SENTINEL_MESSAGE_MAX = 512,
    SENTINEL_LINE_MAX = 1280, /* a message of quotes only, escaped, and the fields around it */
    BOOT_ID_LENGTH = 32,
};

/* Each writes one line with its newline and a NUL, and gives back its length without the NUL.
 * The buffer has SENTINEL_LINE_MAX bytes. */
size_t sentinel_program_start(char *line, struct timespec now, const char *mode, const char *boot);
size_t sentinel_agent_ready(char *line, struct timespec now, const char *boot);
size_t sentinel_ready(char *line, struct timespec now, const char *boot);
size_t sentinel_waiting(char *line, struct timespec now, const char *reason, const char *boot);
size_t sentinel_headers_start(char *line, struct timespec now, const char *boot);
size_t sentinel_headers_ready(char *line, struct timespec now, const char *boot);
size_t sentinel_headers_failed(char *line, struct timespec now, const char *error, const char *boot);
size_t sentinel_emergency(char *line, struct timespec now, const char *state, const char *boot);
size_t sentinel_exit(char *line, int code, const char *message, const char *boot);
size_t sentinel_stage(char *line, const char *name, struct timespec start, struct timespec end,
                      const char *boot);

#endif
