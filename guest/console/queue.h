// SPDX-License-Identifier: Apache-2.0
/* Lines that wait for the journal. The VMM drops what its console's pipe has no room for, and says nothing of
   it: so the pipe is read whatever the journal does, and what waits is here. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    /* Of a longer line each piece is an entry. With its fields one fits into a datagram as large as the
       kernel allows by default (net.core.wmem_default). */
    ENTRY_MAX = 128 * 1024,
    /* Counted as memory of the VM's unit while lines wait, and given back after. */
    QUEUE_SIZE = 8 * 1024 * 1024,
    /* For lines of the boot and the program, and for what tells of lines that are missing. */
    QUEUE_RESERVE = 64 * 1024,
};

enum kind {
    LINE,
    /* its end does not follow: the line goes on with the next entry, or its writer has ended */
    PIECE,
    /* that `number` lines are missing here */
    NOTICE,
    /* no text: `number` is that of the line which would be next */
    END,
};

struct entry {
    enum kind kind;
    /* of the line in this run, from 1 */
    uint64_t number;
    const char *text;
    size_t length;
};

struct queue {
    size_t head;
    size_t tail;
    char data[QUEUE_SIZE];
};

/* False where there would be less than `spare` bytes left. Copies the text. */
bool queue_put(struct queue *queue, const struct entry *entry, size_t spare);

/* The entry at `*at`, from `queue->head` on; moves `*at` behind it. False at the end. The text is the
 * queue's. */
bool queue_read(const struct queue *queue, size_t *at, struct entry *entry);

/* Forget all up to `at`. */
void queue_drop(struct queue *queue, size_t at);

/* Bytes that can be put. */
size_t queue_room(const struct queue *queue);
