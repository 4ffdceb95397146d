/* SPDX-License-Identifier: Apache-2.0 */
/* The items that a FILES stream consists of: frames of their own inside of its DATA. On blocking fds. */
#ifndef HYPEMAN_ITEMS_H
#define HYPEMAN_ITEMS_H

#include "frame.h"
#include "reason.h"

#include <stddef.h>
#include <sys/stat.h>

/* Bytes of a path or of a link's target, with the NUL. */
enum { ITEM_PATH_SIZE = 4096 };

/* A file of an ENTRY. `status` has mode (with its type), owner, size and mtime. The strings are NUL-ended and
 * belong to somebody else; `target` is of a symbolic link only. */
struct item_entry {
    const char *path;
    const char *target;
    struct stat status;
};

/* Write an item. False: the other end is away. */
bool item_put(int fd, uint8_t type, const void *payload, size_t size);
bool item_put_entry(int fd, const struct item_entry *entry);
bool item_put_hole(int fd, uint64_t size);

/* `code` is ok, missing or failed; `message` may be NULL. */
bool item_put_end(int fd, const char *code, const char *message, uint64_t bytes);

/* Read a header: false at the end of the input. */
bool item_header(int fd, struct frame_header *header);

/* Read so many bytes: false if there are less. */
bool item_read(int fd, void *buffer, size_t size);

/* An ENTRY's records. False, with words, if they are not readable or say what cannot be. An owner of -1 is
 * (uid_t)-1. */
bool item_parse_entry(const char *records, size_t size, struct item_entry *entry, struct reason *why);

/* Move bytes between a file and a pipe, from the file's place on, without taking them in hand if the
 * filesystem can. How many have moved: less at the file's end, or with errno set at a fault. */
size_t item_move(int from, int to, size_t size);

#endif
