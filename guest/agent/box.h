/* SPDX-License-Identifier: Apache-2.0 */
/* The two ends of the port: bytes in until they are frames, frames out until they are written. Both bounded.
 */
#ifndef HYPEMAN_BOX_H
#define HYPEMAN_BOX_H

#include "frame.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    INBOX_SIZE = FRAME_HEADER_SIZE + FRAME_PAYLOAD_MAX,
    OUTBOX_SIZE = 131072,
    OUTBOX_RESERVE = 4096, /* kept for frames that answer one that came in */
};

struct inbox {
    uint8_t bytes[INBOX_SIZE];
    size_t used;
};

/* One read of at most what is missing to a whole frame. True if bytes came; false with errno EAGAIN when
 * there are none for now, 0 when the other end is away. */
bool inbox_fill(struct inbox *inbox, int fd);

enum inbox_state { INBOX_PARTIAL, INBOX_FRAME, INBOX_BROKEN };

/* What stands in it: a whole frame (its payload follows the header), a part of one, or no frame at all. */
enum inbox_state inbox_frame(const struct inbox *inbox, struct frame_header *header);

/* Take the frame that stands there away. */
void inbox_drop(struct inbox *inbox);

struct outbox {
    uint8_t bytes[OUTBOX_SIZE];
    size_t start;
    size_t end;
};

/* How long a payload still fits. */
size_t outbox_room(const struct outbox *outbox);

/* Where the payload of the next frame goes; call outbox_commit when it is there. */
uint8_t *outbox_payload(struct outbox *outbox);
void outbox_commit(struct outbox *outbox, struct frame_header header);

/* Both in one. The caller has looked at outbox_room. */
void outbox_put(struct outbox *outbox, struct frame_header header, const void *payload);

/* Write what can be written. True if any was. */
bool outbox_flush(struct outbox *outbox, int fd);

#endif
