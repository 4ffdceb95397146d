// SPDX-License-Identifier: Apache-2.0
#include "serve.h"

#include "attach.h"
#include "clock.h"
#include "files.h"
#include "hostframes.h"
#include "inside.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 32,
    DATA_PORT = STREAMS_MAX * STREAM_SOURCES,
    DATA_SIGNALS,
    DATA_INIT,
    DATA_PROGRAM, /* and the next two: its outputs and its input */
};

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
    agent->unanswered = agent->unanswered && agent->out.start < agent->out.end;
    finish_thaw(agent);
    moved = pump_port(agent) || moved;
    return pump_streams(agent) || moved;
}

static bool is_host_away(const struct agent *agent)
{
    struct pollfd port = {.fd = agent->server->port, .events = POLLIN};
    return poll(&port, 1, 0) > 0 && (port.revents & POLLHUP) != 0;
}

/* What a host says comes by another interrupt than that it is there, and may outrun that: a HELLO may be read
 * before it is seen that the host of before has left, and this one come. So what is away when a HELLO has
 * just come, or its answer cannot be written, is a host that is about to be seen; or that has left, if it
 * stays so. Its streams wait for that; those of the one before ended with the HELLO. */
static void on_port(struct agent *agent, uint32_t events)
{
    agent->connected = agent->connected || (events & EPOLLHUP) == 0;
    agent->readable = agent->readable || (events & EPOLLIN) != 0;
    if ((events & EPOLLHUP) == 0)
        agent->leave_at = NO_DEADLINE;
    if (!agent->connected || (events & EPOLLHUP) == 0)
        return;
    while (pump(agent)) /* What the host said before it left counts. */
        continue;
    if (!is_host_away(agent))
        return;
    if (agent->unanswered || clock_ms() < agent->news_by)
        agent->leave_at = clock_ms() + NEWS_MS;
    else
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
    if (agent->leave_at != NO_DEADLINE && deadline_timeout(agent->leave_at) == 0) {
        agent->leave_at = NO_DEADLINE;
        if (is_host_away(agent))
            disconnect_host(agent);
    }
    int64_t next = agent->leave_at;
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
    agent.leave_at = NO_DEADLINE;
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
