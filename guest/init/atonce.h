/* SPDX-License-Identifier: Apache-2.0 */
/* The same work on several items at the same time: for what waits for devices more than it computes. */
#ifndef HYPEMAN_ATONCE_H
#define HYPEMAN_ATONCE_H

#include <stddef.h>

/* Call `work` with each of `count` items of `size` bytes, and be back when all is done: the last in this
 * thread, the others in threads of their own, or in turn where there is no room for these. `work` touches
 * nothing but its item; what it returns is left. */
void at_once(void *(*work)(void *item), void *items, size_t size, size_t count);

#endif
