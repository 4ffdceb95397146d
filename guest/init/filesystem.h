/* SPDX-License-Identifier: Apache-2.0 */
/* File systems that are mounted first and get their place later, by fd. */
#ifndef HYPEMAN_FILESYSTEM_H
#define HYPEMAN_FILESYSTEM_H

#include <stdbool.h>

/* Mount a device nowhere yet: an fd of its root, or -1 with errno. */
int filesystem_mount(const char *type, const char *device, bool readonly);

/* What a mount does not do. */
struct mount_limits {
    bool nosuid;
    bool nodev;
    bool noexec;
    bool readonly;
};

/* One that needs no device (`nodev` in /proc/filesystems), with options KEY=VALUE alone, joined by commas;
 * nowhere yet: an fd of its root, or -1 with errno. */
int filesystem_nodev(const char *type, const char *options, struct mount_limits limits);

/* An overlay of folders by their paths, mounted nowhere yet: an fd of its root, or -1 with errno. */
int filesystem_overlay(const char *lower, const char *upper, const char *work);

/* Give it its place, a folder by its fd. False with errno. */
bool filesystem_place(int filesystem, int folder);

/* The same of a folder by its path; also of one that has a place and is to have another, which may be out of
 * reach since the root was switched. */
bool filesystem_move(int filesystem, const char *path);

#endif
