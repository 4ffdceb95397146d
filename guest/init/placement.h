/* SPDX-License-Identifier: Apache-2.0 */
/* Files that the host brings on a disk of their own (docs/protocol.md, "Files disk"), and secrets. */
#ifndef HYPEMAN_PLACEMENT_H
#define HYPEMAN_PLACEMENT_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define SECRETS "/run/secrets"

struct secret {
    const char *name;
    const char *owner; /* as identity_find takes it */
    mode_t mode;
};

struct secrets {
    struct secret *all;
    size_t count;
};

/* The value of a `secret` record, which is written to and stays in use. */
bool secret_parse(char *value, struct secret *secret, struct reason *why);

/* Write the files of a body, `count` of them, below the root directory; it is written to. */
bool files_write(char *body, size_t size, uint32_t count, struct reason *why);

/* Write the secrets that a body has, and whose record there is, into a folder. */
bool secrets_write(char *body, size_t size, uint32_t count, const struct secrets *secrets, int folder,
                   struct reason *why);

/* Both by their disks, in the root that was switched to. The disk is waited for. */
bool files_place(int64_t deadline, struct reason *why);
bool secrets_place(const struct secrets *secrets, int64_t deadline, struct reason *why);

#endif
