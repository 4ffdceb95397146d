// SPDX-License-Identifier: Apache-2.0
/* A request, and of its answer the first line: what follows is the program's business, however long it takes.
 */
#include "kinds.h"

#include "clock.h"
#include "files.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum http_step { HTTP_CONNECT, HTTP_ANSWER };
enum { REQUEST_SIZE = CHECK_PATH_MAX + 128, STATUS_MIN = 12, LEFTOVER_READS = 16 };

int http_status(const char *answer, size_t size)
{
    static const char begin[] = "HTTP/1.";
    size_t known = size < sizeof begin - 1 ? size : sizeof begin - 1;
    if (memcmp(answer, begin, known) != 0)
        return -1;
    if (size <= STATUS_MIN)
        return 0;
    int status = 0;
    for (size_t i = 9; i < STATUS_MIN; i++) {
        if (answer[i] < '0' || answer[i] > '9')
            return -1;
        status = status * 10 + (answer[i] - '0');
    }
    bool ended = answer[STATUS_MIN] == ' ' || answer[STATUS_MIN] == '\r' || answer[STATUS_MIN] == '\n';
    return answer[8] == ' ' && ended && status >= 100 ? status : -1;
}

static enum probe_state end(struct probe *probe, enum probe_state state)
{
    char bytes[4096];
    /* What was not read when it is closed would be an error to the program. */
    for (int i = 0; i < LEFTOVER_READS && recv(probe->fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0; i++)
        continue;
    close_fd(&probe->fd);
    probe->deadline = NO_DEADLINE;
    return state;
}

static enum probe_state fail(struct probe *probe, const char *what, int error)
{
    (void)refuse(&probe->why, "http: %s: %s", what, strerror(error));
    return end(probe, PROBE_FAILED);
}

enum probe_state http_begin(struct probe *probe)
{
    union address address;
    if (tcp_find(probe->check->port, probe->check->loopback, &address, &probe->why) != PROBE_PASSED) {
        probe->cheap = true;
        return PROBE_FAILED;
    }
    socklen_t size = address.any.sa_family == AF_INET ? sizeof address.v4 : sizeof address.v6;
    probe->deadline = clock_ms() + check_timeout(probe->check);
    probe->step = HTTP_CONNECT;
    probe->answered = 0;
    probe->events = POLLOUT;
    probe->fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe->fd < 0 || (connect(probe->fd, &address.any, size) != 0 && errno != EINPROGRESS))
        return fail(probe, "cannot connect", errno);
    return PROBE_PENDING;
}

static enum probe_state ask(struct probe *probe)
{
    char request[REQUEST_SIZE];
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(probe->fd, SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0)
        return fail(probe, "cannot connect", error);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: localhost:%u\r\nUser-Agent: hypeman\r\nAccept: */*\r\n"
                          "Connection: close\r\n\r\n",
                          probe->check->path, probe->check->port);
    /* A socket that was just made takes it whole. */
    if (send(probe->fd, request, (size_t)length, MSG_NOSIGNAL) != (ssize_t)length)
        return fail(probe, "cannot send the request", errno);
    probe->step = HTTP_ANSWER;
    probe->events = POLLIN;
    return PROBE_PENDING;
}

static enum probe_state judge(struct probe *probe, int status)
{
    int wanted = probe->check->status;
    if (wanted == 0 ? status >= 200 && status < 400 : status == wanted)
        return end(probe, PROBE_PASSED);
    if (status < 0)
        (void)refuse(&probe->why, "http: the answer is not one of HTTP/1");
    else
        (void)refuse(&probe->why, "http: status %d", status);
    return end(probe, PROBE_FAILED);
}

static enum probe_state read_answer(struct probe *probe)
{
    ssize_t got = recv(probe->fd, probe->answer + probe->answered, PROBE_ANSWER_MAX - probe->answered, 0);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return PROBE_PENDING;
    if (got < 0)
        return fail(probe, "no answer", errno);
    probe->answered += (size_t)got;
    int status = http_status(probe->answer, probe->answered);
    if (status != 0)
        return judge(probe, status);
    if (got > 0)
        return PROBE_PENDING;
    (void)refuse(&probe->why, "http: the connection was closed without an answer");
    return end(probe, PROBE_FAILED);
}

enum probe_state http_step(struct probe *probe, bool ready)
{
    if (deadline_timeout(probe->deadline) == 0) {
        (void)refuse(&probe->why, "http: no answer in time");
        return end(probe, PROBE_FAILED);
    }
    if (!ready)
        return PROBE_PENDING;
    return probe->step == HTTP_CONNECT ? ask(probe) : read_answer(probe);
}
