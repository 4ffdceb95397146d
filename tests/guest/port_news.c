// SPDX-License-Identifier: Apache-2.0
/* The agent on a port of which the test says what is seen of it, and when: data of the host and news of it
 * come by interrupts of their own, in any order. */
#include "../expect.h"
#include "frame.h"
#include "records.h"
#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define BOOT "0123456789abcdef0123456789abcdef"

enum { SIZE = 1024 };

/* What the agent sees next, and what it has sent before that. */
struct step {
    uint8_t says;   /* the type of a frame of the host; 0: none */
    bool away;      /* so it seems to be */
    bool at_once;   /* it is seen while the agent has more to do */
    bool waits;     /* before it, until a deadline of the agent */
    bool is_last;   /* nothing more */
    uint8_t answer; /* the type of the one frame that was sent; 0: none */
};

static struct {
    int fd;
    uint64_t data;
    bool away;
    uint8_t in[SIZE];
    size_t in_start, in_end;
    uint8_t out[SIZE];
    size_t out_end;
    const struct step *step;
    int number, line;
} port;

int __real_epoll_ctl(int epoll, int what, int fd, struct epoll_event *event);
int __real_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout);
int __real_poll(struct pollfd *fds, nfds_t count, int timeout);
ssize_t __real_read(int fd, void *bytes, size_t size);
ssize_t __real_write(int fd, const void *bytes, size_t size);
int __wrap_epoll_ctl(int epoll, int what, int fd, struct epoll_event *event);
int __wrap_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout);
ssize_t __wrap_read(int fd, void *bytes, size_t size);
ssize_t __wrap_write(int fd, const void *bytes, size_t size);

int __wrap_epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    if (fd == port.fd)
        port.data = event->data.u64;
    return __real_epoll_ctl(epoll, what, fd, event);
}

ssize_t __wrap_read(int fd, void *bytes, size_t size)
{
    if (fd != port.fd)
        return __real_read(fd, bytes, size);
    size_t left = port.in_end - port.in_start;
    if (left == 0 && port.away)
        return 0;
    if (left == 0) {
        errno = EAGAIN;
        return -1;
    }
    size = size < left ? size : left;
    memcpy(bytes, port.in + port.in_start, size);
    port.in_start += size;
    return (ssize_t)size;
}

ssize_t __wrap_write(int fd, const void *bytes, size_t size)
{
    if (fd != port.fd)
        return __real_write(fd, bytes, size);
    if (port.away || size > SIZE - port.out_end) {
        errno = EAGAIN;
        return -1;
    }
    memcpy(port.out + port.out_end, bytes, size);
    port.out_end += size;
    return (ssize_t)size;
}

int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    if (count != 1 || fds->fd != port.fd)
        return __real_poll(fds, count, timeout);
    fds->revents = port.away ? POLLHUP | POLLIN : 0;
    return port.away ? 1 : 0;
}

static void say(uint8_t type)
{
    uint8_t *at = port.in;
    size_t used = 0;
    char *records = (char *)at + FRAME_HEADER_SIZE;
    port.in_start = 0;
    if (type == FRAME_HELLO) {
        (void)records_put(records, SIZE - FRAME_HEADER_SIZE, &used, "version", "1");
        (void)records_put(records, SIZE - FRAME_HEADER_SIZE, &used, "boot", BOOT);
    }
    frame_header_put(at, (struct frame_header){.length = (uint32_t)used, .type = type});
    port.in_end = FRAME_HEADER_SIZE + used;
}

/* Of all that was sent: one frame of that type, or nothing. */
static void expect_answer(uint8_t type)
{
    struct frame_header header;
    if (type == 0) {
        EXPECT(port.out_end == 0);
    } else {
        EXPECT(port.out_end >= FRAME_HEADER_SIZE && frame_header_get(port.out, &header) &&
               header.type == type && port.out_end == FRAME_HEADER_SIZE + header.length);
    }
    port.out_end = 0;
}

int __wrap_epoll_wait(int epoll, struct epoll_event *events, int max, int timeout)
{
    const struct step *step = port.step;
    if (timeout == 0 && !step->at_once)
        return 0;
    int known = failures;
    expect_answer(step->answer);
    EXPECT(!step->waits || timeout > 0);
    if (failures > known)
        (void)fprintf(stderr, "that was step %d of line %d\n", port.number, port.line);
    if (step->is_last) {
        (void)raise(SIGTERM);
        return __real_epoll_wait(epoll, events, max, 0);
    }
    port.step++;
    port.number++;
    if (step->waits) {
        (void)__real_poll(NULL, 0, timeout);
        return 0;
    }
    if (step->says != 0)
        say(step->says);
    port.away = step->away;
    uint32_t seen = port.away ? EPOLLIN | EPOLLHUP : EPOLLOUT;
    seen |= port.in_start < port.in_end ? EPOLLIN : 0;
    events[0] = (struct epoll_event){.events = seen, .data.u64 = port.data};
    return 1;
}

static void ready(void)
{
}

static void run(const struct step *steps, int line)
{
    char boot[] = BOOT;
    struct reason why = {""};
    const struct server server = {.port = port.fd, .boot = boot, .ready = ready};
    port.step = steps;
    port.number = 1;
    port.line = line;
    port.away = false;
    port.in_start = port.in_end = port.out_end = 0;
    EXPECT(serve(&server, &why));
    EXPECT_TEXT(why.words, "");
}
#define RUN(...) run((const struct step[]){{.says = FRAME_HELLO}, __VA_ARGS__}, __LINE__)

int main(void)
{
    (void)alarm(60); /* an agent that misses the end would wait for ever */
    port.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    /* another host has come, and its HELLO is read before that is seen: */
    /* the one of before seems to have left, and so does this one until it is seen */
    RUN({.says = FRAME_HELLO, .away = true, .answer = FRAME_HELLO}, {.away = true}, {.away = false},
        {.is_last = true, .answer = FRAME_HELLO});
    /* that is seen when the HELLO was read, and is not answered yet */
    RUN({.says = FRAME_HELLO, .answer = FRAME_HELLO}, {.away = true, .at_once = true}, {.away = false},
        {.is_last = true, .answer = FRAME_HELLO});
    /* or when it was answered */
    RUN({.says = FRAME_HELLO, .answer = FRAME_HELLO}, {.away = true, .answer = FRAME_HELLO},
        {.says = FRAME_PING, .away = false}, {.is_last = true, .answer = FRAME_PONG});
    /* a host that has left stays away: who comes then has to begin with HELLO */
    RUN({.away = true, .answer = FRAME_HELLO}, {.waits = true}, {.says = FRAME_PING, .away = false},
        {.is_last = true, .answer = FRAME_ERROR});
    if (failures > 0)
        (void)fprintf(stderr, "%d failures\n", failures);
    return failures > 0;
}
