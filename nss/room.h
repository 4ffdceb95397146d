/* SPDX-License-Identifier: Apache-2.0 */
/* The buffer that a caller of the resolver hands in: answers are laid out in it from its start. */
#ifndef HYPEMAND_ROOM_H
#define HYPEMAND_ROOM_H

#include <stddef.h>

struct room {
    char *at;
    size_t left;
};

/* So many bytes at a multiple of `align`, or NULL when they do not fit. */
void *room_take(struct room *room, size_t size, size_t align);

/* Copies, or NULL. */
void *room_copy(struct room *room, const void *bytes, size_t size, size_t align);
char *room_text(struct room *room, const char *text);

#endif
