/* SPDX-License-Identifier: Apache-2.0 */
/* Start what a stream is for: a program with pipes or in a terminal, a copy, or a check. */
#ifndef HYPEMAN_LAUNCH_H
#define HYPEMAN_LAUNCH_H

#include "stream.h"

/* All fill in the stream's process and fds, by the `size` bytes in its `records`. False with words if that
 * cannot be; what they made is in the stream then, for it to give back. */
bool launch_program(struct stream *stream, size_t size, struct reason *why);
bool launch_files(struct stream *stream, size_t size, struct reason *why);
bool launch_health(struct stream *stream, size_t size, struct reason *why);

#endif
