// SPDX-License-Identifier: Apache-2.0
/* The file with all else that the stream has. */
#pragma once

#include <stddef.h>
#include <stdint.h>

/** Write to the file of this descriptor, from where that stands, at most `most` bytes. All fail where the
 * file cannot be written. */
void state_init(int fd, uint64_t most);

/** Append. Fails beyond the bound. */
void state_put(const void *bytes, size_t size);

/** Write what was put, and have it begin its way to the disk. */
void state_flush(void);

/** Have all of it on the disk. */
void state_finish(void);
