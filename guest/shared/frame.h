/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of the agent channel, docs/protocol.md. */
#ifndef HYPEMAN_FRAME_H
#define HYPEMAN_FRAME_H

#include <stdbool.h>
#include <stdint.h>

enum {
    FRAME_HEADER_SIZE = 12,
    FRAME_PAYLOAD_MAX = 65536,
    FRAME_WINDOW = 262144, /* bytes a sender may have under way on each channel of a stream */
    FRAME_PING_MAX = 64,
};

enum frame_type {
    FRAME_HELLO = 1,
    FRAME_PING = 2,
    FRAME_PONG = 3,
    FRAME_ERROR = 4,
    FRAME_EXEC = 5,
    FRAME_STARTED = 6,
    FRAME_DATA = 7,
    FRAME_CREDIT = 8,
    FRAME_EXIT = 9,
    FRAME_SIGNAL = 10,
    FRAME_CLOSE = 11,
    FRAME_SHUTDOWN = 12,
    FRAME_RESIZE = 13,
    FRAME_FILES = 14,
    FRAME_CLOCK = 15,
    /* Only among the frames that the byte streams of FILES consist of, as DATA is too. */
    FRAME_ENTRY = 16,
    FRAME_HOLE = 17,
    FRAME_END = 18,
    /* As a frame of the host the order, as an item in its stream a report. */
    FRAME_HEALTH = 19,
    FRAME_ATTACH = 20,
    FRAME_FREEZE = 21,
    FRAME_THAW = 22,
};

enum frame_channel { CHANNEL_STDIN = 0, CHANNEL_STDOUT = 1, CHANNEL_STDERR = 2 };

struct frame_header {
    uint32_t length;
    uint32_t stream;
    uint8_t type;
    uint8_t channel;
};

void frame_header_put(uint8_t at[FRAME_HEADER_SIZE], struct frame_header header);

/* False if no such header can be: too long a payload, a channel that is none, the zero field not zero. */
bool frame_header_get(const uint8_t at[FRAME_HEADER_SIZE], struct frame_header *header);

#endif
