// SPDX-License-Identifier: Apache-2.0
#include "room.h"

#include <stdint.h>
#include <string.h>

void *room_take(struct room *room, size_t size, size_t align)
{
    size_t skew = (align - (uintptr_t)room->at % align) % align;
    if (room->left < skew || room->left - skew < size)
        return NULL;
    char *taken = room->at + skew;
    room->at = taken + size;
    room->left -= skew + size;
    return taken;
}

void *room_copy(struct room *room, const void *bytes, size_t size, size_t align)
{
    void *copy = room_take(room, size, align);
    return copy == NULL ? NULL : memcpy(copy, bytes, size);
}

char *room_text(struct room *room, const char *text)
{
    return room_copy(room, text, strlen(text) + 1, 1);
}
