/* SPDX-License-Identifier: Apache-2.0 */
/* The streams of ATTACH: they read what the VM's program writes and write what it reads, where init has given
 * it pipes or a terminal. Its output goes to the console, too, and what was written last is kept. */
#ifndef HYPEMAN_ATTACH_H
#define HYPEMAN_ATTACH_H

#include "programnews.h"
#include "reason.h"
#include "stream.h"

/* Bytes of each output that are kept. */
enum { KEPT_SIZE = 262144 };

/* What init has said. The ends are taken. */
void attach_program_started(int first, const struct program_ends *ends);
void attach_program_ended(int code, const struct reason *message);

/* Have the program's ends watched, once there are some: events of them have `data` and the next two numbers.
 */
void attach_watch(int epoll, uint64_t data);

/* An event of one of them: of an output, the first (0) or the second (1), or of input. */
void attach_ready(size_t index);

/* Pass on what the program has written, as far as `streams` have room: who takes none is waited for, but not
 * for long, and not once the program has ended. True if anything moved. */
bool attach_pump_program(struct stream *streams, size_t count);

/* Is there nothing more to tell anybody? */
bool attach_is_over(void);

/* An ATTACH, by the records in the stream. */
bool attach_start(struct stream *stream, size_t size, struct reason *why);

/* The records of its STARTED. How many bytes. */
size_t attach_format_started(const struct stream *stream, char *records, size_t capacity);

/* The next bytes of an output. How many; 0: there are none now. */
size_t attach_take(struct stream *stream, size_t index, uint8_t *bytes, size_t size);

/* Has it missed some? Then it can only be ended. */
bool attach_is_late(const struct stream *stream);

/* The program has, and all its output was taken: code and message are in the stream now. */
bool attach_has_ended(struct stream *stream);

/* Does the program get no more input? So it is once one that feeds it has come to its end. */
bool attach_input_ended(const struct stream *stream);

void attach_resize(uint16_t rows, uint16_t columns);
bool attach_has_terminal(void);

#endif
