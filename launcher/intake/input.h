// SPDX-License-Identifier: Apache-2.0
/* The stream: read once, through one buffer, and only so many bytes of it. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* what can be taken at once */
#define INPUT_LARGEST 65536

/** Read from `fd`, at most `most` bytes in all. */
void input_init(int fd, uint64_t most);

/** The bytes that have been read and not taken. */
size_t input_available(void);

/** Read until at least `size` bytes, at most INPUT_LARGEST, are available: false if the stream ends before.
 * What was taken is no longer valid. Fails where reading fails, or there is more than the bound. */
bool input_fill(size_t size);

/** Take `size` bytes, which are available. They are valid until the next input_fill(). */
const unsigned char *input_take(size_t size);
