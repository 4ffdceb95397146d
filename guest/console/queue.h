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

/* Entries follow each other from `head` on, the first behind the last place when there is none left there. */
struct queue {
    size_t head;
    size_t tail;
    /* where entries end before they go on at the first place, while `tail` is before `head` */
    size_t end;
    /* of the places that were used since all were given back */
    size_t top;
    char data[QUEUE_SIZE];
};

/* False where there would be less than `spare` bytes left. Copies the text. */
bool queue_put(struct queue *queue, const struct entry *entry, size_t spare);

/* The oldest entry. False: there is none. Its text is the queue's. */
bool queue_first(const struct queue *queue, struct entry *entry);

/* Forget the oldest entry, if there is one. */
void queue_drop(struct queue *queue);

bool queue_is_empty(const struct queue *queue);

/* Bytes that are free. */
size_t queue_room(const struct queue *queue);
