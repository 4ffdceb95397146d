// SPDX-License-Identifier: Apache-2.0
/* What init reads from the disks that the host writes for it: a header of 16 bytes (docs/protocol.md), and
   the body behind that. */
#pragma once

#include "reason.h"

#include <stddef.h>
#include <stdint.h>

struct disk_form {
    const char *disk; /* for reasons: what it is, and its body */
    const char *body;
    const char *magic; /* of 8 bytes */
    size_t max;        /* bytes of the body */
};

/* Its body, to be freed, with a byte to spare; `last`: the header's last word. NULL when it cannot be read.
 */
char *disk_body_read(int fd, const struct disk_form *form, size_t *size, uint32_t *last, struct reason *why);
