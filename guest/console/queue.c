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

bool queue_is_empty(const struct queue *queue)
{
    return queue->head == queue->tail;
}

size_t queue_room(const struct queue *queue)
{
    if (queue->tail < queue->head)
        return queue->head - queue->tail;
    return QUEUE_SIZE - (queue->tail - queue->head);
}

/* The place of so many bytes in a row; QUEUE_SIZE: there is none. `head` is never reached, since that would
   be an empty queue. */
static size_t find_place(const struct queue *queue, size_t needed)
{
    if (queue->tail < queue->head)
        return queue->head - queue->tail > needed ? queue->tail : QUEUE_SIZE;
    if (QUEUE_SIZE - queue->tail >= needed)
        return queue->tail;
    return queue->head > needed ? 0 : QUEUE_SIZE;
}

bool queue_put(struct queue *queue, const struct entry *entry, size_t spare)
{
    const struct header header = {entry->number, (uint32_t)entry->length, (uint32_t)entry->kind};
    size_t needed = sizeof header + entry->length;
    size_t place = find_place(queue, needed + spare);
    if (place == QUEUE_SIZE)
        return false;
    if (place < queue->tail)
        queue->end = queue->tail;
    memcpy(queue->data + place, &header, sizeof header);
    if (entry->length > 0)
        memcpy(queue->data + place + sizeof header, entry->text, entry->length);
    queue->tail = place + needed;
    if (queue->tail > queue->top)
        queue->top = queue->tail;
    return true;
}

bool queue_first(const struct queue *queue, struct entry *entry)
{
    struct header header;
    if (queue_is_empty(queue))
        return false;
    memcpy(&header, queue->data + queue->head, sizeof header);
    *entry = (struct entry){(enum kind)header.kind, header.number, queue->data + queue->head + sizeof header,
                            header.length};
    return true;
}

/* A flood is over: its memory counts as the guest's. Whole pages of the queue's alone. */
static void release(struct queue *queue)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t from = KEPT + (page - (uintptr_t)(queue->data + KEPT) % page) % page;
    if (queue->top > from)
        (void)madvise(queue->data + from, (queue->top - from) / page * page, MADV_DONTNEED);
    queue->head = queue->tail = queue->top = 0;
}

void queue_drop(struct queue *queue)
{
    struct entry entry;
    if (!queue_first(queue, &entry))
        return;
    bool goes_on_before = queue->tail < queue->head;
    queue->head += sizeof(struct header) + entry.length;
    if (goes_on_before && queue->head == queue->end)
        queue->head = 0;
    if (queue_is_empty(queue))
        release(queue);
}
