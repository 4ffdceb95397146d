/* SPDX-License-Identifier: Apache-2.0 */
/* The terminal of an exec: a pseudoterminal whose master end the agent holds. */
#ifndef HYPEMAN_TERMINAL_H
#define HYPEMAN_TERMINAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Whoever runs in it is told by the kernel. What cannot be is of no consequence. */
void terminal_resize(int master, uint16_t rows, uint16_t columns);

/* What is typed to say that there is no more input, into `typed`: once, or twice when the line has begun. How
 * many bytes. */
size_t terminal_end(int master, bool line_begun, uint8_t typed[2]);

#endif
