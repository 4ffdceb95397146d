// SPDX-License-Identifier: Apache-2.0
#include "stream.h"

#include "bytes.h"
#include "files.h"
#include "records.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    DATA_MAX = 32768,                /* of output in a frame: others get their turn in between */
    CREDIT_BATCH = FRAME_WINDOW / 4, /* credit is given back in lumps of this, or when all is consumed */
    CONTROL_MAX = REASON_MAX + 64,   /* the longest STARTED or EXIT */
};

/* --- start --- */

static bool take_records(struct stream *stream, size_t size, struct reason *why)
{
    size_t args = 0;
    size_t envs = 0;
    const char *user = NULL;
    stream->argv = calloc(records_count(stream->records, size, "arg") + 1, sizeof(char *));
    stream->given = calloc(records_count(stream->records, size, "env") + 1, sizeof(char *));
    if (stream->argv == NULL || stream->given == NULL)
        return refuse(why, "no memory");
    size_t offset = 0;
    struct record record;
    while (records_next(stream->records, size, &offset, &record)) {
        char *value = stream->records + (record.value - stream->records);
        if (record_is(&record, "arg"))
            stream->argv[args++] = value;
        else if (record_is(&record, "env") && environment_valid(value))
            stream->given[envs++] = value;
        else if (record_is(&record, "env"))
            return refuse(why, "env \"%s\": expected KEY=value", value);
        else if (record_is(&record, "cwd"))
            stream->spawn.folder = value;
        else if (record_is(&record, "user"))
            user = value;
    }
    if (args == 0)
        return refuse(why, "no arg: nothing to execute");
    if (!identity_find(user, &stream->who, why))
        return false;
    stream->environment =
        environment_build(stream->given, stream->who.home, stream->home, sizeof stream->home);
    return stream->environment != NULL || refuse(why, "no memory");
}

/* A pipe whose end that stays here does not block, while the process's end does. */
static bool make_pipe(int ends[2], int ours)
{
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    return fcntl(ends[ours], F_SETFL, O_NONBLOCK) == 0;
}

static bool spawn_with_pipes(struct stream *stream, struct reason *why)
{
    int in[2] = {-1, -1};
    int out[2] = {-1, -1};
    int err[2] = {-1, -1};
    struct spawned spawned;
    bool started = make_pipe(in, 1) && make_pipe(out, 0) && make_pipe(err, 0);
    if (!started)
        (void)refuse(why, "cannot make pipes: %s", strerror(errno));
    stream->spawn.argv = stream->argv;
    stream->spawn.environment = stream->environment;
    stream->spawn.who = &stream->who;
    stream->spawn.ready_fd = -1;
    stream->spawn.binary = -1;
    stream->spawn.oom_score_adj = "0";
    stream->spawn.stdio[0] = in[0];
    stream->spawn.stdio[1] = out[1];
    stream->spawn.stdio[2] = err[1];
    started = started && spawn_start(&stream->spawn, &spawned, why);
    close_fd(&in[0]);
    close_fd(&out[1]);
    close_fd(&err[1]);
    stream->input = in[1];
    stream->outputs[0].fd = out[0];
    stream->outputs[1].fd = err[0];
    if (started) {
        stream->pid = spawned.pid;
        stream->verdict = spawned.verdict;
    }
    return started;
}

static bool watch_all(const struct stream *stream, int epoll, uint32_t index, struct reason *why)
{
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
        struct epoll_event event = {.events = watched[i].events,
                                    .data.u64 = (uint64_t)index * STREAM_SOURCES + watched[i].source};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, watched[i].fd, &event) != 0)
            return refuse(why, "cannot wait for the process: %s", strerror(errno));
    }
    return true;
}

static void kill_group(const struct stream *stream, int number)
{
    if (stream->pid <= 0 || stream->reaped)
        return;
    /* Just forked, it may not lead its group yet. */
    if (kill(-stream->pid, number) != 0 && errno == ESRCH)
        (void)kill(stream->pid, number);
}

static void end(struct stream *stream, int code)
{
    stream->state = STREAM_ENDED;
    stream->code = code;
}

void stream_start(struct stream *stream, uint32_t id, const char *records, size_t size, int epoll,
                  uint32_t index)
{
    *stream =
        (struct stream){.state = STREAM_STARTING,
                        .id = id,
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
    if (!take_records(stream, size, &stream->message) || !spawn_with_pipes(stream, &stream->message) ||
        !watch_all(stream, epoll, index, &stream->message)) {
        kill_group(stream, SIGKILL);
        end(stream, EXIT_GUEST_FAILED);
    }
}

/* --- from the host --- */

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

bool stream_input(struct stream *stream, const uint8_t *bytes, uint32_t size)
{
    if (stream->input_eof || size > stream->window)
        return false;
    stream->input_eof = size == 0;
    stream->window -= size;
    if (size == 0)
        return true;
    if (stream->input < 0)
        stream->consumed += size; /* Nobody reads it, and the host need not know. */
    else if (!pending_add(&stream->pending, bytes, size))
        stream_close(stream);
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

void stream_close(struct stream *stream)
{
    stream->closed = true;
    kill_group(stream, SIGKILL);
    end_input(stream);
    for (size_t i = 0; i < 2; i++)
        close_fd(&stream->outputs[i].fd);
}

void stream_reaped(struct stream *stream, int status)
{
    stream->reaped = true;
    if (stream->state == STREAM_ENDED)
        return; /* The exec failed: code and words are known better. */
    stream->code = exit_code(status);
    exit_words(status, &stream->message);
}

/* --- to the host --- */

static bool put_records(const struct stream *stream, struct outbox *outbox, uint8_t type, const char *key,
                        int number, const char *message)
{
    if (outbox_room(outbox) < CONTROL_MAX)
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
    if (stream->verdict < 0 || outbox_room(outbox) < CONTROL_MAX)
        return false;
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
        if (written < 0 && errno == EAGAIN)
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
    if (owed && !stream->input_eof && outbox_room(outbox) >= CONTROL_MAX) {
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

static bool put_output_end(struct stream *stream, struct output *output, uint8_t channel,
                           struct outbox *outbox)
{
    if (outbox_room(outbox) < OUTBOX_RESERVE)
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
    if (output->readable && output->credit > 0 && room >= (size_t)2 * OUTBOX_RESERVE) {
        size_t most = room - OUTBOX_RESERVE < DATA_MAX ? room - OUTBOX_RESERVE : DATA_MAX;
        if (most > output->credit)
            most = output->credit;
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
    int waiting = 0;
    if (stream->reaped && ioctl(output->fd, FIONREAD, &waiting) == 0 && waiting == 0)
        return put_output_end(stream, output, channel, outbox);
    return false;
}

static bool pump_end(struct stream *stream, struct outbox *outbox)
{
    bool quiet = stream->outputs[0].fd < 0 && stream->outputs[1].fd < 0;
    bool failed = stream->state == STREAM_ENDED;
    if (!failed && !(stream->reaped && quiet))
        return false;
    if (!put_records(stream, outbox, FRAME_EXIT, "code", stream->code, stream->message.words))
        return false;
    stream_discard(stream);
    return true;
}

bool stream_pump(struct stream *stream, struct outbox *outbox)
{
    if (stream->state == STREAM_FREE)
        return false;
    bool moved = pump_verdict(stream, outbox);
    if (stream->state == STREAM_RUNNING) {
        moved = pump_input(stream, outbox) || moved;
        moved = pump_output(stream, CHANNEL_STDOUT, outbox) || moved;
        moved = pump_output(stream, CHANNEL_STDERR, outbox) || moved;
    }
    if (stream->state != STREAM_STARTING)
        moved = pump_end(stream, outbox) || moved;
    return moved;
}

void stream_discard(struct stream *stream)
{
    kill_group(stream, SIGKILL);
    end_input(stream);
    for (size_t i = 0; i < 2; i++)
        close_fd(&stream->outputs[i].fd);
    free_spawn(stream);
    *stream = (struct stream){.state = STREAM_FREE};
}
