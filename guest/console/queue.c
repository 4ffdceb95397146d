// SPDX-License-Identifier: Apache-2.0
#include "queue.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { KEPT = 256 * 1024 };

struct header {
    uint64_t number;
    uint32_t length;
    uint32_t kind;
};

size_t queue_room(const struct queue *queue)
{
    return QUEUE_SIZE - (queue->tail - queue->head);
}

/* Half of it at least is free then, so a byte is moved once for each that is put. */
static void make_room(struct queue *queue, size_t needed)
{
    if (QUEUE_SIZE - queue->tail >= needed || queue->head < QUEUE_SIZE / 2)
        return;
    memmove(queue->data, queue->data + queue->head, queue->tail - queue->head);
    queue->tail -= queue->head;
    queue->head = 0;
}

bool queue_put(struct queue *queue, const struct entry *entry, size_t spare)
{
    const struct header header = {entry->number, (uint32_t)entry->length, (uint32_t)entry->kind};
    size_t needed = sizeof header + entry->length;
    make_room(queue, needed + spare);
    if (QUEUE_SIZE - queue->tail < needed + spare)
        return false;
    memcpy(queue->data + queue->tail, &header, sizeof header);
    if (entry->length > 0)
        memcpy(queue->data + queue->tail + sizeof header, entry->text, entry->length);
    queue->tail += needed;
    return true;
}

bool queue_read(const struct queue *queue, size_t *at, struct entry *entry)
{
    struct header header;
    if (*at == queue->tail)
        return false;
    memcpy(&header, queue->data + *at, sizeof header);
    *entry = (struct entry){(enum kind)header.kind, header.number, queue->data + *at + sizeof header,
                            header.length};
    *at += sizeof header + header.length;
    return true;
}

/* A flood is over: its memory counts as the guest's. Whole pages of the queue's alone. */
static void release(struct queue *queue)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t from = KEPT + (page - (uintptr_t)(queue->data + KEPT) % page) % page;
    if (queue->tail > from)
        (void)madvise(queue->data + from, (queue->tail - from) / page * page, MADV_DONTNEED);
}

void queue_drop(struct queue *queue, size_t at)
{
    queue->head = at;
    if (queue->head < queue->tail)
        return;
    release(queue);
    queue->head = queue->tail = 0;
}
