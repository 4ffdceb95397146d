// SPDX-License-Identifier: Apache-2.0
#include "box.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

bool inbox_fill(struct inbox *inbox, int fd)
{
    struct frame_header header;
    size_t wanted = FRAME_HEADER_SIZE;
    if (inbox->used >= FRAME_HEADER_SIZE && frame_header_get(inbox->bytes, &header))
        wanted += header.length;
    ssize_t got;
    do
        got = read(fd, inbox->bytes + inbox->used, wanted - inbox->used);
    while (got < 0 && errno == EINTR);
    if (got == 0)
        errno = 0;
    if (got <= 0)
        return false;
    inbox->used += (size_t)got;
    return true;
}

enum inbox_state inbox_frame(const struct inbox *inbox, struct frame_header *header)
{
    if (inbox->used < FRAME_HEADER_SIZE)
        return INBOX_PARTIAL;
    if (!frame_header_get(inbox->bytes, header))
        return INBOX_BROKEN;
    return inbox->used < FRAME_HEADER_SIZE + header->length ? INBOX_PARTIAL : INBOX_FRAME;
}

void inbox_drop(struct inbox *inbox)
{
    inbox->used = 0;
}

size_t outbox_room(const struct outbox *outbox)
{
    size_t room = OUTBOX_SIZE - (outbox->end - outbox->start);
    return room > FRAME_HEADER_SIZE ? room - FRAME_HEADER_SIZE : 0;
}

uint8_t *outbox_payload(struct outbox *outbox)
{
    if (outbox->start > 0) {
        memmove(outbox->bytes, outbox->bytes + outbox->start, outbox->end - outbox->start);
        outbox->end -= outbox->start;
        outbox->start = 0;
    }
    return outbox->bytes + outbox->end + FRAME_HEADER_SIZE;
}

void outbox_commit(struct outbox *outbox, struct frame_header header)
{
    frame_header_put(outbox->bytes + outbox->end, header);
    outbox->end += FRAME_HEADER_SIZE + header.length;
}

void outbox_put(struct outbox *outbox, struct frame_header header, const void *payload)
{
    uint8_t *at = outbox_payload(outbox);
    if (header.length > 0)
        memcpy(at, payload, header.length);
    outbox_commit(outbox, header);
}

bool outbox_flush(struct outbox *outbox, int fd)
{
    bool any = false;
    while (outbox->start < outbox->end) {
        ssize_t written = write(fd, outbox->bytes + outbox->start, outbox->end - outbox->start);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return any; /* Full, or the host is away: an edge tells when that changes. */
        outbox->start += (size_t)written;
        any = true;
    }
    outbox->start = 0;
    outbox->end = 0;
    return any;
}
