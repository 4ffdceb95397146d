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

/* How many blocks the ext4 of a device has by its superblock; 0 if there is none that can be read. Where
 * mounting it has changed that, its journal had a growth in it, of which the kernel knows nothing that it has
 * counted before: it has to be mounted anew, else the next growth is its end. */
uint64_t growth_blocks(const char *device);

/* Let the ext4 of `device` grow to the device's end, if it has not. It is mounted, and `folder` is an fd of
 * its root. What was cut off in the middle is gone on with at the next boot. False with errno. */
bool growth_do(int folder, const char *device);

#endif
