/* SPDX-License-Identifier: Apache-2.0 */
/* The running kernel's headers and module indexes, so that modules can be built in the guest. */
#ifndef HYPEMAN_HEADERS_H
#define HYPEMAN_HEADERS_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { HEADERS_ID_SIZE = 65 };

/* The build id, in hex, among the notes of an ELF file. False if there is none or they cannot be read. */
bool headers_find_id(const uint8_t *notes, size_t size, char id[HEADERS_ID_SIZE]);

/* Make /usr/src/linux-headers-RELEASE and /lib/modules/RELEASE of the running kernel right, from the disk
 * with the serial hypeman-headers, and remove those of other kernels. Nothing is done if they are right. */
bool headers_setup(struct reason *why);

#endif
