// SPDX-License-Identifier: Apache-2.0
/* How much of a VM's console the host's journal takes: bytes and lines have one budget. */
#pragma once

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
    /* A line is held until it is whole, or so long: journald cuts lines at 48 KiB anyway. */
    CONSOLE_BUFFER = 64 * 1024,
};

/* Tokens are bytes, and come by time. */
struct bucket {
    int64_t burst;
    int64_t per_hour;
    int64_t tokens;
    int64_t filled_ms;
};

/* Where what is kept goes. False when nothing can be written any more. */
typedef bool (*console_sink)(void *to, const char *data, size_t length);

struct console {
    struct bucket all;
    struct bucket reserve;
    console_sink sink;
    void *to;
    /* of the line that is on: it began in an earlier call, and was let through */
    bool continues;
    bool passes;
    /* since when nothing is kept, until a sixteenth of the burst is there again */
    bool dropping;
    uint64_t dropped_lines;
    uint64_t dropped_bytes;
    /* lines in the buffer, one after the other, that go out together */
    const char *pending;
    size_t pending_length;
    size_t held;
    char buffer[CONSOLE_BUFFER];
};

/* `burst` in bytes, from 1 MiB; `per_hour` likewise; `now_ms` of a monotonic clock. */
void console_init(struct console *console, int64_t burst, int64_t per_hour, int64_t now_ms, console_sink sink,
                  void *to);

/* Room for what comes next, at least a byte. */
char *console_room(struct console *console, size_t *length);

/* So many bytes have come into the room. False when the sink takes no more. */
bool console_take(struct console *console, size_t length, int64_t now_ms);

/* Nothing comes any more: what is held goes out. */
bool console_end(struct console *console, int64_t now_ms);
