// SPDX-License-Identifier: Apache-2.0
#include "serve.h"

#include "attach.h"
#include "bytes.h"
#include "clock.h"
#include "files.h"
#include "inside.h"
#include "records.h"
#include "stream.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    STREAMS_MAX = 64,
    EVENTS_MAX = 32,
    GRACE_MAX = 86400,
    SIGNAL_MAX = 64,
    RECORDS_SIZE = 256,
    DATA_PORT = STREAMS_MAX * STREAM_SOURCES,
    DATA_SIGNALS,
    DATA_INIT,
    DATA_PROGRAM, /* and the next two: its outputs and its input */
};

struct agent {
    const struct server *server;
    int epoll;
    int signals;
    bool connected;
    bool greeted; /* the host's HELLO is in */
    bool refused; /* an ERROR was sent: nothing but another HELLO is heard */
    bool broken;  /* where a frame begins is lost: nothing at all is heard until the host leaves */
    bool readable;
    bool ended;
    bool frozen;   /* the guest is: nothing is started in it */
    uint32_t turn; /* whose output goes first */
    struct inbox in;
    struct outbox out;
    struct stream streams[STREAMS_MAX];
};

static void discard_streams(struct agent *agent, bool at_once)
{
    for (size_t i = 0; i < STREAMS_MAX; i++) {
        if (agent->streams[i].state != STREAM_FREE)
            stream_discard(&agent->streams[i], at_once);
    }
}

static void send_records(struct agent *agent, uint8_t type, const char *records, size_t size)
{
    outbox_put(&agent->out, (struct frame_header){.length = (uint32_t)size, .type = type}, records);
}

static void send_hello(struct agent *agent)
{
    static const char *const features[] = {"tty", "umask", "files", "clock", "health", "attach", "freeze"};
    char records[RECORDS_SIZE];
    size_t used = 0;
    (void)records_put(records, sizeof records, &used, "version", "1");
    (void)records_put(records, sizeof records, &used, "boot", agent->server->boot);
    (void)records_put(records, sizeof records, &used, "agent", AGENT_VERSION);
    for (size_t i = 0; i < sizeof features / sizeof features[0]; i++)
        (void)records_put(records, sizeof records, &used, "feature", features[i]);
    if (agent->frozen)
        (void)records_put(records, sizeof records, &used, "frozen", "1");
    send_records(agent, FRAME_HELLO, records, used);
}

/* The end of this connection, as far as the agent goes. */
static void refuse_host(struct agent *agent, const char *code, const char *message)
{
    char records[RECORDS_SIZE];
    size_t used = 0;
    (void)records_put(records, sizeof records, &used, "code", code);
    (void)records_put(records, sizeof records, &used, "message", message);
    send_records(agent, FRAME_ERROR, records, used);
    discard_streams(agent, false);
    agent->refused = true;
}

/* Nothing of a connection before is left. */
static void begin_anew(struct agent *agent)
{
    discard_streams(agent, false);
    agent->out.start = 0;
    agent->out.end = 0;
    agent->greeted = false;
    agent->refused = false;
}

static void disconnect_host(struct agent *agent)
{
    begin_anew(agent);
    inbox_drop(&agent->in);
    agent->connected = false;
    agent->broken = false;
}

static struct stream *find_stream(struct agent *agent, uint32_t id)
{
    for (size_t i = 0; i < STREAMS_MAX; i++) {
        enum stream_state state = agent->streams[i].state;
        if (state != STREAM_FREE && state != STREAM_LEAVING && agent->streams[i].id == id)
            return &agent->streams[i];
    }
    return NULL;
}

/* --- frames --- */

static const char *record_value(const char *records, size_t size, const char *key)
{
    size_t offset = 0;
    struct record record;
    while (records_next(records, size, &offset, &record)) {
        if (record_is(&record, key))
            return record.value;
    }
    return NULL;
}

static void on_hello(struct agent *agent, const char *records, size_t size)
{
    const char *version = record_value(records, size, "version");
    const char *boot = record_value(records, size, "boot");
    /* After another one: the host has left and come back faster than this end could see. */
    if (agent->greeted || agent->refused)
        begin_anew(agent);
    if (version == NULL || strcmp(version, "1") != 0)
        refuse_host(agent, "version", "this agent knows protocol version 1 only");
    else if (boot == NULL || strcmp(boot, agent->server->boot) != 0)
        refuse_host(agent, "boot", "HELLO names another boot than this one");
    else {
        agent->greeted = true;
        send_hello(agent);
    }
}

/* The stream of a request that opens one. */
static bool may_open(struct agent *agent, uint32_t id)
{
    if (id != 0 && find_stream(agent, id) == NULL)
        return true;
    refuse_host(agent, "stream", "a request on a stream that is in use, or on none");
    return false;
}

/* The end of a stream that has nothing but that. */
static void send_exit(struct agent *agent, uint32_t id, int code, const char *message)
{
    char records[RECORDS_SIZE];
    char number[16];
    size_t used = 0;
    (void)snprintf(number, sizeof number, "%d", code);
    (void)records_put(records, sizeof records, &used, "code", number);
    (void)records_put(records, sizeof records, &used, "message", message);
    outbox_put(&agent->out, (struct frame_header){.length = (uint32_t)used, .stream = id, .type = FRAME_EXIT},
               records);
}

/* EXEC, FILES, HEALTH or ATTACH. */
static void on_request(struct agent *agent, const struct frame_header *header, const char *records)
{
    if (!may_open(agent, header->stream))
        return;
    if (agent->frozen) {
        send_exit(agent, header->stream, EXIT_GUEST_FAILED,
                  "the guest is frozen: nothing runs in it until THAW");
        return;
    }
    for (uint32_t i = 0; i < STREAMS_MAX; i++) {
        if (agent->streams[i].state == STREAM_FREE) {
            stream_start(&agent->streams[i], header->stream, header->type, records, header->length,
                         (struct place){agent->epoll, i});
            return;
        }
    }
    send_exit(agent, header->stream, EXIT_GUEST_FAILED,
              "too many programs are executed at once; 64 is the limit");
}

static void on_clock(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    if (header->length != 8) {
        refuse_host(agent, "protocol", "CLOCK that is not one number");
        return;
    }
    if (!may_open(agent, header->stream))
        return;
    uint64_t ns = get_le64(payload);
    struct timespec now = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    bool set = agent->server->set_clock(&now) == 0;
    send_exit(agent, header->stream, set ? 0 : EXIT_GUEST_FAILED, set ? "the clock is set" : strerror(errno));
}

static void on_freeze(struct agent *agent, const struct frame_header *header)
{
    struct reason words = {""};
    if (header->length != 0) {
        refuse_host(agent, "protocol", "FREEZE with a payload");
        return;
    }
    if (!may_open(agent, header->stream))
        return;
    bool frozen = agent->server->freeze(agent->server->init, &words);
    agent->frozen = agent->frozen || frozen;
    send_exit(agent, header->stream, frozen ? 0 : EXIT_GUEST_FAILED, words.words);
}

static void on_thaw(struct agent *agent, const struct frame_header *header, const char *records)
{
    struct reason why = {""};
    struct thaw thaw;
    if (!may_open(agent, header->stream))
        return;
    char *copy = malloc(header->length + 1);
    bool thawed = copy != NULL || refuse(&why, "no memory");
    if (copy != NULL)
        memcpy(copy, records, header->length);
    thawed = thawed && thaw_parse(copy, header->length, &thaw, &why) && agent->server->thaw(&thaw, &why);
    free(copy);
    if (thawed)
        agent->frozen = false;
    send_exit(agent, header->stream, thawed ? 0 : EXIT_GUEST_FAILED,
              thawed ? "the guest goes on" : why.words);
}

static void on_shutdown(struct agent *agent, const char *records, size_t size)
{
    const char *text = record_value(records, size, "grace");
    unsigned long grace;
    if (text == NULL || !parse_number(text, GRACE_MAX, &grace)) {
        refuse_host(agent, "protocol", "SHUTDOWN without a grace of 0 to 86400 seconds");
        return;
    }
    if (sigqueue(agent->server->init, SIGNAL_POWER_OFF, (union sigval){.sival_int = (int)grace}) != 0)
        refuse_host(agent, "shutdown", "PID 1 cannot be told to power off");
}

static void on_ping(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    if (header->length > FRAME_PING_MAX)
        refuse_host(agent, "protocol", "PING of more than 64 bytes");
    else
        outbox_put(&agent->out, (struct frame_header){.length = header->length, .type = FRAME_PONG}, payload);
}

/* DATA, CREDIT, SIGNAL, RESIZE, CLOSE. One for a stream that is over was under way when it ended: no fault.
 */
static void on_stream_frame(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    struct stream *stream = find_stream(agent, header->stream);
    bool numeric =
        header->type == FRAME_CREDIT || header->type == FRAME_SIGNAL || header->type == FRAME_RESIZE;
    if (numeric && header->length != 4) {
        refuse_host(agent, "protocol", "CREDIT, SIGNAL or RESIZE that is not four bytes");
        return;
    }
    if (stream == NULL || stream->closed)
        return;
    uint32_t number = numeric ? get_le32(payload) : 0;
    if (header->type == FRAME_CLOSE)
        stream_close(stream);
    else if (header->type == FRAME_SIGNAL && (number == 0 || number > SIGNAL_MAX))
        refuse_host(agent, "protocol", "SIGNAL with a number that is none");
    else if (header->type == FRAME_SIGNAL)
        stream_signal(stream, (int)number);
    else if (header->type == FRAME_RESIZE)
        stream_resize(stream, (uint16_t)number, (uint16_t)(number >> 16));
    else if (header->type == FRAME_CREDIT && !stream_credit(stream, header->channel, number))
        refuse_host(agent, "credit", "more credit than the window");
    else if (header->type == FRAME_DATA &&
             (header->channel != CHANNEL_STDIN || !stream_input(stream, payload, header->length)))
        refuse_host(agent, "credit", "DATA beyond its credit, after its end, or not on stdin");
}

static void on_frame(struct agent *agent, const struct frame_header *header, const uint8_t *payload)
{
    const char *records = (const char *)payload;
    bool has_records = header->type == FRAME_HELLO || header->type == FRAME_EXEC ||
                       header->type == FRAME_FILES || header->type == FRAME_HEALTH ||
                       header->type == FRAME_ATTACH || header->type == FRAME_SHUTDOWN ||
                       header->type == FRAME_THAW;
    if (agent->refused && header->type != FRAME_HELLO)
        return;
    if (!agent->greeted && header->type != FRAME_HELLO) {
        refuse_host(agent, "protocol", "the first frame is not HELLO");
        return;
    }
    if (has_records && !records_valid(records, header->length)) {
        refuse_host(agent, "protocol", "records that cannot be read");
        return;
    }
    switch (header->type) {
    case FRAME_HELLO:
        on_hello(agent, records, header->length);
        break;
    case FRAME_PING:
        on_ping(agent, header, payload);
        break;
    case FRAME_EXEC:
    case FRAME_FILES:
    case FRAME_HEALTH:
    case FRAME_ATTACH:
        on_request(agent, header, records);
        break;
    case FRAME_CLOCK:
        on_clock(agent, header, payload);
        break;
    case FRAME_FREEZE:
        on_freeze(agent, header);
        break;
    case FRAME_THAW:
        on_thaw(agent, header, records);
        break;
    case FRAME_SHUTDOWN:
        on_shutdown(agent, records, header->length);
        break;
    case FRAME_DATA:
    case FRAME_CREDIT:
    case FRAME_SIGNAL:
    case FRAME_RESIZE:
    case FRAME_CLOSE:
        on_stream_frame(agent, header, payload);
        break;
    case FRAME_ERROR:
        discard_streams(agent, false);
        agent->refused = true;
        break;
    default:
        refuse_host(agent, "protocol", "a frame of a type that the host does not send");
        break;
    }
}

/* --- the loop --- */

/* Read and answer while the outbox has room for an answer. True if anything came. */
static bool pump_port(struct agent *agent)
{
    bool moved = false;
    while (agent->readable && outbox_room(&agent->out) >= OUTBOX_RESERVE) {
        if (!inbox_fill(&agent->in, agent->server->port)) {
            agent->readable = false;
            break;
        }
        moved = true;
        struct frame_header header;
        enum inbox_state state = inbox_frame(&agent->in, &header);
        if (state == INBOX_FRAME && !agent->broken)
            on_frame(agent, &header, agent->in.bytes + FRAME_HEADER_SIZE);
        if (state == INBOX_BROKEN && !agent->broken) {
            agent->broken = true;
            refuse_host(agent, "protocol", "a header that is none");
        }
        if (state != INBOX_PARTIAL)
            inbox_drop(&agent->in);
    }
    return moved;
}

/* Who was the last to put something into the outbox is the last to have its turn again: there may be room for
 * one only. */
static bool pump_streams(struct agent *agent)
{
    uint32_t first = agent->turn;
    bool moved = false;
    for (uint32_t i = 0; i < STREAMS_MAX; i++) {
        uint32_t index = (first + i) % STREAMS_MAX;
        if (!stream_pump(&agent->streams[index], &agent->out))
            continue;
        agent->turn = index + 1;
        moved = true;
    }
    return moved;
}

static bool is_attached(const struct agent *agent)
{
    for (size_t i = 0; i < STREAMS_MAX; i++) {
        if (agent->streams[i].kind == STREAM_ATTACH && agent->streams[i].state != STREAM_FREE)
            return true;
    }
    return false;
}

/* What the VM's program writes, host or not. Init learns when all has been said of it. */
static bool pump_program(struct agent *agent)
{
    attach_watch(agent->epoll, DATA_PROGRAM);
    bool moved = attach_pump_program(agent->streams, STREAMS_MAX);
    if (attach_is_over() && !is_attached(agent) && agent->out.start == agent->out.end)
        inside_answer();
    return moved;
}

/* One turn of everybody. True if anything moved, and there may be more. */
static bool pump(struct agent *agent)
{
    if (!agent->connected)
        return false;
    bool moved = outbox_flush(&agent->out, agent->server->port);
    moved = pump_port(agent) || moved;
    return pump_streams(agent) || moved;
}

static void on_port(struct agent *agent, uint32_t events)
{
    agent->connected = agent->connected || (events & EPOLLHUP) == 0;
    agent->readable = agent->readable || (events & EPOLLIN) != 0;
    if (!agent->connected || (events & EPOLLHUP) == 0)
        return;
    while (pump(agent)) /* What the host said before it left counts. */
        continue;
    disconnect_host(agent);
}

static void on_signals(struct agent *agent)
{
    struct signalfd_siginfo info;
    while (read(agent->signals, &info, sizeof info) == (ssize_t)sizeof info)
        agent->ended = agent->ended || info.ssi_signo == SIGTERM;
    for (;;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0 && errno == EINTR)
            continue;
        if (pid <= 0)
            return;
        for (size_t i = 0; i < STREAMS_MAX; i++) {
            struct stream *stream = &agent->streams[i];
            if (stream->state != STREAM_FREE && stream->pid == pid)
                stream_reaped(stream, status);
        }
    }
}

static void on_event(struct agent *agent, const struct epoll_event *event)
{
    if (event->data.u64 == DATA_PORT) {
        on_port(agent, event->events);
    } else if (event->data.u64 == DATA_SIGNALS) {
        on_signals(agent);
    } else if (event->data.u64 == DATA_INIT) {
        inside_hear();
    } else if (event->data.u64 >= DATA_PROGRAM) {
        attach_ready((size_t)(event->data.u64 - DATA_PROGRAM));
    } else {
        /* A stale event of a place that was given to another stream costs it one read that finds nothing. */
        struct stream *stream = &agent->streams[event->data.u64 / STREAM_SOURCES];
        uint64_t source = event->data.u64 % STREAM_SOURCES;
        if (source == STREAM_OUTPUT || source == STREAM_ERROR_OUTPUT)
            stream->outputs[source - STREAM_OUTPUT].readable = true;
    }
}

/* How long to wait for events, with those deadlines met that have come. */
static int meet_deadlines(struct agent *agent)
{
    int64_t next = NO_DEADLINE;
    for (size_t i = 0; i < STREAMS_MAX; i++) {
        struct stream *stream = &agent->streams[i];
        if (stream->state == STREAM_FREE || stream->deadline == NO_DEADLINE)
            continue;
        if (deadline_timeout(stream->deadline) == 0) {
            stream_expire(stream);
            next = 0; /* It may have to say so, or others may go on. */
        } else if (stream->deadline < next)
            next = stream->deadline;
    }
    return deadline_timeout(next);
}

static bool prepare(struct agent *agent, struct reason *why)
{
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGCHLD);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGPIPE); /* Blocked and never read: a write says EPIPE. */
    (void)sigprocmask(SIG_SETMASK, &signals, NULL);
    (void)sigdelset(&signals, SIGPIPE);
    agent->epoll = epoll_create1(EPOLL_CLOEXEC);
    agent->signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    /* Edge-triggered: a port whose host is away would otherwise be reported without end. */
    struct epoll_event port = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u64 = DATA_PORT};
    struct epoll_event from_signals = {.events = EPOLLIN, .data.u64 = DATA_SIGNALS};
    if (agent->epoll < 0 || agent->signals < 0 ||
        epoll_ctl(agent->epoll, EPOLL_CTL_ADD, agent->signals, &from_signals) != 0 ||
        epoll_ctl(agent->epoll, EPOLL_CTL_ADD, agent->server->port, &port) != 0)
        return refuse(why, "cannot set up waiting for events: %s", strerror(errno));
    return true;
}

bool serve(const struct server *server, struct reason *why)
{
    static struct agent agent; /* Zero pages until they are used. */
    agent.server = server;
    agent.frozen = server->frozen;
    bool served = prepare(&agent, why);
    bool moved = false;
    if (served)
        server->ready();
    struct epoll_event from_init = {.events = EPOLLIN, .data.u64 = DATA_INIT};
    if (served && inside_socket() >= 0)
        (void)epoll_ctl(agent.epoll, EPOLL_CTL_ADD, inside_socket(), &from_init);
    while (served && !agent.ended) {
        struct epoll_event events[EVENTS_MAX];
        /* Those that always have more do not keep it from hearing of others. */
        int timeout = meet_deadlines(&agent);
        int count = epoll_wait(agent.epoll, events, EVENTS_MAX, moved ? 0 : timeout);
        if (count < 0 && errno != EINTR)
            served = refuse(why, "cannot wait for events: %s", strerror(errno));
        for (int i = 0; i < count; i++)
            on_event(&agent, &events[i]);
        moved = pump(&agent);
        moved = pump_program(&agent) || moved;
    }
    discard_streams(&agent, true);
    disconnect_host(&agent);
    agent.readable = false;
    agent.ended = false;
    close_fd(&agent.signals);
    close_fd(&agent.epoll);
    return served;
}
