// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include "attach.h"
#include "bytes.h"
#include "clock.h"
#include "files.h"
#include "launch.h"
#include "records.h"
#include "terminal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    DATA_MAX = 32768,                /* of output in a frame: others get their turn in between */
    CREDIT_BATCH = FRAME_WINDOW / 4, /* credit is given back in lumps of this, or when all is consumed */
    CONTROL_MAX = REASON_MAX + 64,   /* the longest STARTED or EXIT */
    /* What has to be free for it, and for output, so that the reserve is free behind it: or the agent would
     * read nothing more until the host has. */
    CONTROL_ROOM = CONTROL_MAX + FRAME_HEADER_SIZE + OUTBOX_RESERVE,
    OUTPUT_KEEPS = FRAME_HEADER_SIZE + OUTBOX_RESERVE,
};

/* --- start --- */

static bool watch_all(const struct stream *stream, struct place place, struct reason *why)
{
    if (stream->kind == STREAM_ATTACH)
        return true; /* What it moves bytes to and from is watched for all of them. */
    const struct {
        int fd;
        enum stream_source source;
        uint32_t events;
    } watched[] = {
        {stream->input, STREAM_INPUT, EPOLLOUT | EPOLLET},
        {stream->outputs[0].fd, STREAM_OUTPUT, EPOLLIN | EPOLLET},
        {stream->outputs[1].fd, STREAM_ERROR_OUTPUT, EPOLLIN | EPOLLET},
        {stream->verdict, STREAM_VERDICT, EPOLLIN | EPOLLET},
    };
    for (size_t i = 0; i < sizeof watched / sizeof watched[0]; i++) {
        uint64_t data = (uint64_t)place.index * STREAM_SOURCES + watched[i].source;
        struct epoll_event event = {.events = watched[i].events, .data.u64 = data};
        if (watched[i].fd >= 0 && epoll_ctl(place.epoll, EPOLL_CTL_ADD, watched[i].fd, &event) != 0)
            return refuse(why, "cannot wait for the process: %s", strerror(errno));
    }
    return true;
}

static bool is_ours(const struct stream *stream)
{
    return stream->kind == STREAM_FILES || stream->kind == STREAM_HEALTH;
}

static void kill_group(const struct stream *stream, int number)
{
    if (stream->pid <= 0 || stream->reaped || is_ours(stream))
        return;
    /* Just forked, it may not lead its group yet. */
    if (kill(-stream->pid, number) != 0 && errno == ESRCH)
        (void)kill(stream->pid, number);
}

/* All that the process has started; if it has ended by itself, what it left behind may go on. */
static void kill_all(const struct stream *stream)
{
    if (stream->pid > 0 && !stream->reaped && !group_kill(&stream->group))
        kill_group(stream, SIGKILL);
}

static void end(struct stream *stream, int code)
{
    stream->state = STREAM_ENDED;
    stream->code = code;
}

static enum stream_kind kind_of(uint8_t type)
{
    switch (type) {
    case FRAME_FILES:
        return STREAM_FILES;
    case FRAME_HEALTH:
        return STREAM_HEALTH;
    case FRAME_ATTACH:
        return STREAM_ATTACH;
    default:
        return STREAM_EXEC;
    }
}

static bool launch(struct stream *stream, size_t size, struct reason *why)
{
    switch (stream->kind) {
    case STREAM_FILES:
        return launch_files(stream, size, why);
    case STREAM_HEALTH:
        return launch_health(stream, size, why);
    case STREAM_ATTACH:
        return attach_start(stream, size, why);
    case STREAM_EXEC:
    case STREAM_TERMINAL:
        break;
    }
    return launch_program(stream, size, why);
}

void stream_start(struct stream *stream, uint32_t id, uint8_t type, const char *records, size_t size,
                  struct place place)
{
    *stream =
        (struct stream){.state = STREAM_STARTING,
                        .kind = kind_of(type),
                        .id = id,
                        .group = GROUP_NONE,
                        .deadline = NO_DEADLINE,
                        .verdict = -1,
                        .input = -1,
                        .window = FRAME_WINDOW,
                        .spawn = {.folder = "/"},
                        .outputs = {{.fd = -1, .credit = FRAME_WINDOW}, {.fd = -1, .credit = FRAME_WINDOW}}};
    stream->records = malloc(size + 1);
    if (stream->records == NULL) {
        (void)refuse(&stream->message, "no memory");
        end(stream, EXIT_GUEST_FAILED);
        return;
    }
    memcpy(stream->records, records, size);
    if (!launch(stream, size, &stream->message) || !watch_all(stream, place, &stream->message)) {
        kill_all(stream);
        end(stream, EXIT_GUEST_FAILED);
    }
}

/* --- from the host --- */

/* As much as goes without waiting, straight away: what is not kept need not be copied. How much that was. */
static size_t write_now(const struct stream *stream, const uint8_t *bytes, size_t size)
{
    if (stream->state != STREAM_RUNNING || stream->pending.start < stream->pending.end)
        return 0;
    ssize_t written = write(stream->input, bytes, size);
    return written > 0 ? (size_t)written : 0;
}

static bool pending_add(struct pending *pending, const uint8_t *bytes, size_t size)
{
    if (pending->start > 0) {
        memmove(pending->bytes, pending->bytes + pending->start, pending->end - pending->start);
        pending->end -= pending->start;
        pending->start = 0;
    }
    if (pending->capacity - pending->end < size) {
        size_t capacity = pending->end + size;
        uint8_t *grown = realloc(pending->bytes, capacity);
        if (grown == NULL)
            return false;
        pending->bytes = grown;
        pending->capacity = capacity;
    }
    memcpy(pending->bytes + pending->end, bytes, size);
    pending->end += size;
    return true;
}

static void end_input(struct stream *stream)
{
    close_fd(&stream->input);
    stream->consumed += (uint32_t)(stream->pending.end - stream->pending.start);
    free(stream->pending.bytes);
    stream->pending = (struct pending){0};
}

/* A terminal has no end of input: it is typed. */
static void type_end(struct stream *stream)
{
    uint8_t typed[2];
    size_t size = terminal_end(stream->input, stream->line_begun, typed);
    if (!pending_add(&stream->pending, typed, size))
        stream_close(stream);
}

static void take_input(struct stream *stream, const uint8_t *bytes, uint32_t size)
{
    stream->line_begun = bytes[size - 1] != '\n' && bytes[size - 1] != '\r';
    size_t written = write_now(stream, bytes, size);
    stream->consumed += (uint32_t)written;
    if (written < size && !pending_add(&stream->pending, bytes + written, size - written))
        stream_close(stream);
}

bool stream_input(struct stream *stream, const uint8_t *bytes, uint32_t size)
{
    if (stream->input_eof || size > stream->window)
        return false;
    stream->input_eof = size == 0;
    stream->window -= size;
    if (stream->input < 0)
        stream->consumed += size; /* Nobody reads it, and the host need not know. */
    else if (size > 0)
        take_input(stream, bytes, size);
    else if (stream->kind == STREAM_TERMINAL || (stream->kind == STREAM_ATTACH && attach_has_terminal()))
        type_end(stream);
    return true;
}

bool stream_credit(struct stream *stream, uint8_t channel, uint32_t more)
{
    if (channel != CHANNEL_STDOUT && channel != CHANNEL_STDERR)
        return false;
    struct output *output = &stream->outputs[channel - CHANNEL_STDOUT];
    if (more > FRAME_WINDOW - output->credit)
        return false;
    output->credit += more;
    return true;
}

void stream_signal(struct stream *stream, int number)
{
    if (stream->state == STREAM_STARTING)
        stream->early_signals |= UINT64_C(1) << (number - 1);
    else
        kill_group(stream, number);
}

void stream_resize(struct stream *stream, uint16_t rows, uint16_t columns)
{
    if (stream->kind == STREAM_ATTACH)
        attach_resize(rows, columns);
    else if (stream->kind == STREAM_TERMINAL && stream->outputs[0].fd >= 0)
        terminal_resize(stream->outputs[0].fd, rows, columns);
}

static void close_all(struct stream *stream)
{
    end_input(stream);
    for (size_t i = 0; i < 2; i++)
        close_fd(&stream->outputs[i].fd);
}

/* The kernel tells the foreground of a terminal whose master is gone; the leader's group may be another. */
static void hang_up(struct stream *stream)
{
    if (stream->pid <= 0 || stream->deadline != NO_DEADLINE)
        return;
    kill_group(stream, SIGHUP);
    kill_group(stream, SIGCONT);
    stream->deadline = clock_ms() + HANG_UP_GRACE_MS;
}

/* The program goes on without it. */
static void detach(struct stream *stream, int code, const char *why)
{
    close_all(stream);
    stream->deadline = NO_DEADLINE;
    (void)refuse(&stream->message, "%s", why);
    end(stream, code);
}

static void detach_late(struct stream *stream)
{
    stream->late = true;
    detach(stream, 1, "detached: the output of the program was not read for too long");
}

void stream_close(struct stream *stream)
{
    stream->closed = true;
    if (stream->kind == STREAM_ATTACH && stream->state != STREAM_ENDED) {
        detach(stream, 0, "detached");
        return;
    }
    if (stream->kind == STREAM_TERMINAL)
        hang_up(stream);
    else
        kill_all(stream);
    close_all(stream);
}

static void free_stream(struct stream *stream);

/* Also where the terminal's own process has ended: it was told to. */
static void kill_rest(struct stream *stream)
{
    if (!group_kill(&stream->group))
        kill_group(stream, SIGKILL);
}

void stream_expire(struct stream *stream)
{
    stream->deadline = NO_DEADLINE;
    if (stream->kind == STREAM_ATTACH) {
        detach_late(stream);
        return;
    }
    kill_rest(stream);
    if (stream->state == STREAM_LEAVING && stream->reaped)
        free_stream(stream);
}

void stream_reaped(struct stream *stream, int status)
{
    stream->reaped = true;
    if (stream->state == STREAM_LEAVING && stream->deadline == NO_DEADLINE) {
        free_stream(stream);
        return;
    }
    if (stream->state == STREAM_ENDED)
        return; /* The exec failed: code and words are known better. */
    stream->code = exit_code(status);
    exit_words(status, &stream->message);
}

/* --- to the host --- */

static bool put_records(const struct stream *stream, struct outbox *outbox, uint8_t type, const char *key,
                        int number, const char *message)
{
    if (outbox_room(outbox) < CONTROL_ROOM)
        return false;
    char *payload = (char *)outbox_payload(outbox);
    char digits[16];
    size_t used = 0;
    (void)snprintf(digits, sizeof digits, "%d", number);
    (void)records_put(payload, CONTROL_MAX, &used, key, digits);
    if (message != NULL)
        (void)records_put(payload, CONTROL_MAX, &used, "message", message);
    outbox_commit(outbox,
                  (struct frame_header){.length = (uint32_t)used, .stream = stream->id, .type = type});
    return true;
}

static void free_spawn(struct stream *stream)
{
    close_fd(&stream->verdict);
    free(stream->records);
    free(stream->argv);
    free(stream->given);
    free(stream->environment);
    stream->records = NULL;
    stream->argv = NULL;
    stream->given = NULL;
    stream->environment = NULL;
}

static bool pump_verdict(struct stream *stream, struct outbox *outbox)
{
    int code;
    if (stream->state != STREAM_STARTING || outbox_room(outbox) < CONTROL_ROOM)
        return false;
    if (is_ours(stream)) {
        stream->state = STREAM_RUNNING; /* Nothing is executed that could fail. */
        (void)put_records(stream, outbox, FRAME_STARTED, "pid", (int)stream->pid, NULL);
        free_spawn(stream);
        return true;
    }
    switch (spawn_settle(stream->verdict, &stream->spawn, &code, &stream->message)) {
    case SPAWN_PENDING:
        return false;
    case SPAWN_FAILED:
        end(stream, code);
        break;
    case SPAWN_STARTED:
        stream->state = STREAM_RUNNING;
        (void)put_records(stream, outbox, FRAME_STARTED, "pid", (int)stream->pid, NULL);
        for (int number = 1; number <= 64; number++) {
            if ((stream->early_signals >> (number - 1) & 1) != 0)
                kill_group(stream, number);
        }
        break;
    }
    free_spawn(stream);
    return true;
}

static bool pump_input(struct stream *stream, struct outbox *outbox)
{
    struct pending *pending = &stream->pending;
    bool moved = false;
    while (stream->input >= 0 && pending->start < pending->end) {
        ssize_t written =
            write(stream->input, pending->bytes + pending->start, pending->end - pending->start);
        if (written < 0 && errno == EINTR)
            continue;
        if (written == 0 || (written < 0 && errno == EAGAIN))
            break;
        moved = true;
        if (written < 0) {
            end_input(stream); /* It has closed its stdin. */
            break;
        }
        pending->start += (size_t)written;
        stream->consumed += (uint32_t)written;
    }
    bool empty = pending->start == pending->end;
    if (empty && stream->input_eof)
        end_input(stream);
    bool owed = stream->consumed >= CREDIT_BATCH || (empty && stream->consumed > 0);
    if (owed && !stream->input_eof && outbox_room(outbox) >= CONTROL_ROOM) {
        uint8_t payload[4];
        put_le32(payload, stream->consumed);
        outbox_put(outbox,
                   (struct frame_header){
                       .length = 4, .stream = stream->id, .type = FRAME_CREDIT, .channel = CHANNEL_STDIN},
                   payload);
        stream->window += stream->consumed;
        stream->consumed = 0;
        moved = true;
    }
    return moved;
}

static bool pump_attached(struct stream *stream, uint8_t channel, struct outbox *outbox)
{
    size_t index = channel - CHANNEL_STDOUT;
    struct output *output = &stream->outputs[index];
    if (output->credit == 0 || outbox_room(outbox) < DATA_MAX + OUTPUT_KEEPS)
        return false;
    size_t most = output->credit < DATA_MAX ? output->credit : DATA_MAX;
    size_t taken = attach_take(stream, index, outbox_payload(outbox), most);
    output->credit -= (uint32_t)taken;
    if (taken > 0)
        outbox_commit(outbox, (struct frame_header){.length = (uint32_t)taken,
                                                    .stream = stream->id,
                                                    .type = FRAME_DATA,
                                                    .channel = channel});
    return taken > 0;
}

static bool pump_attach(struct stream *stream, struct outbox *outbox)
{
    bool moved = stream->state == STREAM_STARTING && outbox_room(outbox) >= CONTROL_ROOM;
    if (moved) {
        char *payload = (char *)outbox_payload(outbox);
        size_t size = attach_format_started(stream, payload, CONTROL_MAX);
        outbox_commit(outbox, (struct frame_header){
                                  .length = (uint32_t)size, .stream = stream->id, .type = FRAME_STARTED});
        stream->state = STREAM_RUNNING;
        free_spawn(stream);
    }
    if (stream->state != STREAM_RUNNING)
        return false;
    if (attach_is_late(stream)) {
        detach_late(stream);
        return true;
    }
    moved = pump_input(stream, outbox) || moved;
    if (attach_input_ended(stream))
        end_input(stream);
    moved = pump_attached(stream, CHANNEL_STDOUT, outbox) || moved;
    moved = pump_attached(stream, CHANNEL_STDERR, outbox) || moved;
    stream->reaped = attach_has_ended(stream);
    return moved;
}

static bool put_output_end(struct stream *stream, struct output *output, uint8_t channel,
                           struct outbox *outbox)
{
    if (outbox_room(outbox) < CONTROL_ROOM)
        return false;
    close_fd(&output->fd);
    outbox_put(outbox, (struct frame_header){.stream = stream->id, .type = FRAME_DATA, .channel = channel},
               NULL);
    return true;
}

static bool pump_output(struct stream *stream, uint8_t channel, struct outbox *outbox)
{
    struct output *output = &stream->outputs[channel - CHANNEL_STDOUT];
    size_t room = outbox_room(outbox);
    if (output->fd < 0)
        return false;
    /* Never less because there is less room: whose turn came when the outbox was nearly full would have the
     * smaller share. */
    if (output->readable && output->credit > 0 && room >= DATA_MAX + OUTPUT_KEEPS) {
        size_t most = output->credit < DATA_MAX ? output->credit : DATA_MAX;
        ssize_t got = read(output->fd, outbox_payload(outbox), most);
        if (got > 0) {
            output->credit -= (uint32_t)got;
            outbox_commit(outbox, (struct frame_header){.length = (uint32_t)got,
                                                        .stream = stream->id,
                                                        .type = FRAME_DATA,
                                                        .channel = channel});
            return true;
        }
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            return put_output_end(stream, output, channel, outbox);
        output->readable = errno == EINTR;
    }
    /* All that the process itself wrote is in the pipe by now. What it left behind in the background may hold
     * the pipe open for as long as it likes. */
    struct pollfd waiting = {.fd = output->fd, .events = POLLIN};
    if (stream->reaped && poll(&waiting, 1, 0) >= 0 && (waiting.revents & POLLIN) == 0)
        return put_output_end(stream, output, channel, outbox);
    return false;
}

/* What is still in a terminal that was hung up has its time yet. */
static void leave(struct stream *stream)
{
    if (stream->deadline == NO_DEADLINE && (stream->reaped || stream->kind != STREAM_TERMINAL)) {
        free_stream(stream);
        return;
    }
    close_all(stream);
    free_spawn(stream);
    stream->state = STREAM_LEAVING;
    stream->id = 0;
}

static bool pump_end(struct stream *stream, struct outbox *outbox)
{
    bool quiet = stream->outputs[0].fd < 0 && stream->outputs[1].fd < 0;
    bool failed = stream->state == STREAM_ENDED;
    if (!failed && !(stream->reaped && quiet))
        return false;
    if (!put_records(stream, outbox, FRAME_EXIT, stream->late ? "detached" : "code", stream->code,
                     stream->message.words))
        return false;
    if (failed)
        free_stream(stream);
    else
        leave(stream);
    return true;
}

bool stream_pump(struct stream *stream, struct outbox *outbox)
{
    if (stream->state == STREAM_FREE || stream->state == STREAM_LEAVING)
        return false;
    bool attached = stream->kind == STREAM_ATTACH;
    bool moved = attached ? pump_attach(stream, outbox) : pump_verdict(stream, outbox);
    if (stream->state == STREAM_RUNNING && !attached) {
        moved = pump_input(stream, outbox) || moved;
        moved = pump_output(stream, CHANNEL_STDOUT, outbox) || moved;
        moved = pump_output(stream, CHANNEL_STDERR, outbox) || moved;
    }
    if (stream->state != STREAM_STARTING)
        moved = pump_end(stream, outbox) || moved;
    return moved;
}

static void free_stream(struct stream *stream)
{
    kill_all(stream);
    group_release(&stream->group);
    close_all(stream);
    free_spawn(stream);
    *stream = (struct stream){.state = STREAM_FREE, .group = GROUP_NONE};
}

void stream_discard(struct stream *stream, bool at_once)
{
    if (stream->kind == STREAM_TERMINAL && stream->state == STREAM_RUNNING && !at_once)
        hang_up(stream);
    if (stream->kind == STREAM_TERMINAL && at_once && stream->pid > 0)
        kill_rest(stream);
    if (stream->deadline != NO_DEADLINE && !at_once && stream->kind != STREAM_ATTACH)
        leave(stream);
    else
        free_stream(stream);
}
