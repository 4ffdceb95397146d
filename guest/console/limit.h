// SPDX-License-Identifier: Apache-2.0
/* How much of a VM's console the host's journal takes: bytes and lines have one budget. */
#pragma once

#include "queue.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* What an entry of the journal takes beside its text: so a flood of short lines counts for what it costs.
     */
    LINE_COST = 512,
    /* For lines that say how the boot and the program fare, once all else is spent. */
    RESERVE_BURST = 64 * 1024,
    RESERVE_PER_SECOND = 64,
};

/* Tokens are bytes, and come by time. */
struct bucket {
    int64_t burst;
    int64_t per_hour;
    int64_t tokens;
    int64_t filled_ms;
};

struct console {
    struct bucket all;
    struct bucket reserve;
    struct queue *queue;
    /* lines that have begun */
    uint64_t lines;
    /* of the line that is on: it began in an earlier call, and was let through */
    bool continues;
    bool passes;
    /* since when nothing is kept: until a sixteenth of the burst is there again, and half of the queue */
    bool dropping;
    /* of what was dropped: some of it since the queue was full */
    bool late;
    uint64_t dropped_lines;
    uint64_t dropped_bytes;
    size_t held;
    char buffer[ENTRY_MAX];
};

/* `burst` in bytes, from 1 MiB; `per_hour` likewise; `now_ms` of a monotonic clock. What is kept goes into
   `queue`, which who empties it shares. */
void console_init(struct console *console, struct queue *queue, int64_t burst, int64_t per_hour,
                  int64_t now_ms);

/* Room for what comes next, at least a byte. */
char *console_room(struct console *console, size_t *length);

/* So many bytes have come into the room. */
void console_take(struct console *console, size_t length, int64_t now_ms);

/* Nothing comes any more: what is held goes into the queue. */
void console_end(struct console *console, int64_t now_ms);

/* What is in the queue was not passed on, and will not be: it is dropped, and all that was is told. */
void console_give_up(struct console *console);
