// SPDX-License-Identifier: Apache-2.0
#include "attach.h"

#include "clock.h"
#include "files.h"
#include "inside.h"
#include "records.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    OUTPUTS = 2,
    PIECE_SIZE = 4096, /* of output at a time: commands have their turns in between */
    HOLD_MS = 5000,    /* how long who is attached may hold the program up by taking no output */
};

struct kept {
    uint8_t *bytes;   /* a ring of KEPT_SIZE */
    uint64_t written; /* since the program's start */
    bool readable;
};

static struct {
    int first; /* 0: nothing is known of it, or it has no ends */
    struct program_ends ends;
    struct kept outputs[OUTPUTS];
    bool watched;
    bool ended;
    bool drained; /* and all of its output has been passed on */
    int code;
    struct reason message;
} program = {.ends = {-1, -1, -1, -1, -1}};

/* --- from init --- */

void attach_program_started(int first, const struct program_ends *ends)
{
    program.first = first;
    program.ends = *ends;
    for (size_t i = 0; i < OUTPUTS; i++) {
        program.outputs[i].readable = true;
        /* Pages of it exist once they are written to. Without it there is no attaching. */
        program.outputs[i].bytes = malloc(KEPT_SIZE);
    }
}

void attach_program_ended(int code, const struct reason *message)
{
    program.ended = true;
    program.code = code;
    program.message = *message;
    program.outputs[0].readable = true;
    program.outputs[1].readable = true;
}

/* --- the program's output --- */

static int *output_fd(size_t index)
{
    return index == 0 ? &program.ends.output : &program.ends.error;
}

void attach_watch(int epoll, uint64_t data)
{
    if (program.watched || program.first == 0)
        return;
    program.watched = true;
    const int fds[] = {program.ends.output, program.ends.error, program.ends.input};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        struct epoll_event event = {.events = (i < OUTPUTS ? EPOLLIN : EPOLLOUT) | EPOLLET,
                                    .data.u64 = data + i};
        /* Better that the program finds its output closed than that it waits for ever. */
        if (fds[i] >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, fds[i], &event) != 0)
            program_ends_close(&program.ends);
    }
}

void attach_ready(size_t index)
{
    if (index < OUTPUTS)
        program.outputs[index].readable = true;
}

/* The console takes it all, or drops it: the host sees to that. */
static void write_console(const uint8_t *bytes, size_t size)
{
    while (size > 0) {
        ssize_t written = write(program.ends.console, bytes, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return;
        bytes += written;
        size -= (size_t)written;
    }
}

static void keep(struct kept *kept, const uint8_t *bytes, size_t size)
{
    size_t at = (size_t)(kept->written % KEPT_SIZE);
    size_t straight = size < KEPT_SIZE - at ? size : KEPT_SIZE - at;
    kept->written += size;
    if (kept->bytes == NULL)
        return;
    memcpy(kept->bytes + at, bytes, straight);
    memcpy(kept->bytes, bytes + straight, size - straight);
}

/* Would the next piece take the place of one that somebody attached has not had? */
static bool is_held(struct stream *streams, size_t count, size_t index)
{
    bool held = false;
    for (size_t i = 0; i < count; i++) {
        struct stream *stream = &streams[i];
        if (stream->kind != STREAM_ATTACH ||
            (stream->state != STREAM_STARTING && stream->state != STREAM_RUNNING))
            continue;
        if (program.outputs[index].written - stream->outputs[index].place + PIECE_SIZE <= KEPT_SIZE)
            continue;
        held = true;
        if (stream->deadline == NO_DEADLINE)
            stream->deadline = clock_ms() + HOLD_MS;
    }
    return held;
}

static bool pass_on(size_t index)
{
    struct kept *kept = &program.outputs[index];
    uint8_t piece[PIECE_SIZE];
    ssize_t got = read(*output_fd(index), piece, sizeof piece);
    if (got < 0 && errno == EINTR)
        return true;
    if (got <= 0) {
        kept->readable = false;
        if (got == 0 || errno != EAGAIN)
            close_fd(output_fd(index));
        return false;
    }
    write_console(piece, (size_t)got);
    keep(kept, piece, (size_t)got);
    return true;
}

bool attach_pump_program(struct stream *streams, size_t count)
{
    bool moved = false;
    bool left = false;
    for (size_t i = 0; i < OUTPUTS; i++) {
        if (*output_fd(i) < 0 || !program.outputs[i].readable)
            continue;
        if (program.ended || !is_held(streams, count, i))
            moved = pass_on(i) || moved;
        left = left || program.outputs[i].readable;
    }
    bool was_drained = program.drained;
    program.drained = program.drained || (program.ended && !left);
    return moved || program.drained != was_drained;
}

bool attach_is_over(void)
{
    return program.drained;
}

/* --- those who are attached --- */

static bool take_record(const struct record *record, const char *key, unsigned long max,
                        unsigned long *number, struct reason *why)
{
    return !record_is(record, key) || parse_number(record->value, max, number) ||
           refuse(why, "%s=%.40s: expected a number from 0 to %lu", key, record->value, max);
}

bool attach_start(struct stream *stream, size_t size, struct reason *why)
{
    unsigned long input = 0, replay = 0, rows = 0, columns = 0;
    struct enclosure enclosure;
    struct record record;
    for (size_t offset = 0; records_next(stream->records, size, &offset, &record);) {
        if (!take_record(&record, "stdin", 1, &input, why) ||
            !take_record(&record, "replay", 1, &replay, why) ||
            !take_record(&record, "rows", UINT16_MAX, &rows, why) ||
            !take_record(&record, "cols", UINT16_MAX, &columns, why))
            return false;
    }
    if (!inside_find(&enclosure, why))
        return false;
    if (program.first == 0)
        return refuse(why, "the program of the VM was started with neither stdin nor a terminal");
    if (program.outputs[0].bytes == NULL || program.outputs[1].bytes == NULL)
        return refuse(why, "no memory for output");
    for (size_t i = 0; i < OUTPUTS; i++) {
        uint64_t written = program.outputs[i].written;
        uint64_t oldest = written > KEPT_SIZE ? written - KEPT_SIZE : 0;
        stream->outputs[i].place = replay == 1 ? oldest : written;
    }
    stream->feeds = input == 1 && program.ends.input >= 0;
    if (stream->feeds)
        stream->input = fcntl(program.ends.input, F_DUPFD_CLOEXEC, 0);
    if (stream->feeds && stream->input < 0)
        return refuse(why, "cannot open the program's stdin: %s", strerror(errno));
    if (rows > 0 && columns > 0)
        attach_resize((uint16_t)rows, (uint16_t)columns);
    return true;
}

size_t attach_format_started(const struct stream *stream, char *records, size_t capacity)
{
    char text[24];
    size_t used = 0;
    (void)snprintf(text, sizeof text, "%d", program.first);
    (void)records_put(records, capacity, &used, "pid", text);
    (void)records_put(records, capacity, &used, "tty", attach_has_terminal() ? "1" : "0");
    (void)records_put(records, capacity, &used, "stdin", stream->feeds ? "1" : "0");
    return used;
}

static uint64_t lag(const struct stream *stream, size_t index)
{
    return program.outputs[index].written - stream->outputs[index].place;
}

size_t attach_take(struct stream *stream, size_t index, uint8_t *bytes, size_t size)
{
    const struct kept *kept = &program.outputs[index];
    struct output *output = &stream->outputs[index];
    size_t at = (size_t)(output->place % KEPT_SIZE);
    uint64_t there = lag(stream, index);
    if (size > there)
        size = (size_t)there;
    size_t straight = size < KEPT_SIZE - at ? size : KEPT_SIZE - at;
    memcpy(bytes, kept->bytes + at, straight);
    memcpy(bytes + straight, kept->bytes, size - straight);
    output->place += size;
    if (lag(stream, 0) <= KEPT_SIZE / 2 && lag(stream, 1) <= KEPT_SIZE / 2)
        stream->deadline = NO_DEADLINE;
    return size;
}

bool attach_is_late(const struct stream *stream)
{
    return lag(stream, 0) > KEPT_SIZE || lag(stream, 1) > KEPT_SIZE;
}

bool attach_has_ended(struct stream *stream)
{
    if (!program.drained || lag(stream, 0) > 0 || lag(stream, 1) > 0)
        return false;
    stream->code = program.code;
    stream->message = program.message;
    return true;
}

bool attach_input_ended(const struct stream *stream)
{
    /* Of a pipe for all: it is the program's one stdin. */
    if (stream->feeds && stream->input < 0 && stream->input_eof && !attach_has_terminal())
        close_fd(&program.ends.input);
    return program.ends.input < 0;
}

void attach_resize(uint16_t rows, uint16_t columns)
{
    if (attach_has_terminal())
        terminal_resize(program.ends.output, rows, columns);
}

bool attach_has_terminal(void)
{
    return program.ends.terminal >= 0;
}
