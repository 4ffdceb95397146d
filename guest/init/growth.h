/* SPDX-License-Identifier: Apache-2.0 */
/* A file system that is smaller than its device: the host has made the device larger since. */
#ifndef HYPEMAN_GROWTH_H
#define HYPEMAN_GROWTH_H

#include <stdbool.h>
#include <stdint.h>

enum { SUPERBLOCK_AT = 1024, SUPERBLOCK_SIZE = 1024 };

/* How many blocks an ext4 can have on a device of so many bytes, by its superblock; 0 if it has them, or if
 * that is no ext4. */
uint64_t growth_wanted(const unsigned char superblock[SUPERBLOCK_SIZE], uint64_t bytes);

/* Let the ext4 of `device` grow to the device's end, if it has not. It is mounted, and `folder` is an fd of
 * its root. What was cut off in the middle is gone on with at the next boot. False with errno. */
bool growth_do(int folder, const char *device);

#endif
