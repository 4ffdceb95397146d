// SPDX-License-Identifier: Apache-2.0
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* launcher/ports.c */
#define PORT "stop.sock"
#define CONTROL "qmp.sock"
/* hypemand/vmm/control.py: of a guest that runs it changes nothing */
#define RESUME "{\"execute\": \"qmp_capabilities\"}\n{\"execute\": \"cont\"}\n"

enum { ANSWER_SIZE = 4096 };

/* Connect to a socket of that user, and to nothing else: a VMM that was taken over may have put a link to the
 * socket of another process there. `flags`: SOCK_NONBLOCK, not to wait for its turn. Returns it, or -1. */
static int connect_to(const char *runtime, const char *name, uid_t uid, int flags)
{
    char path[PATH_MAX];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct stat found;
    int length = snprintf(path, sizeof(path), "%s/%s", runtime, name);
    if (length < 0 || (size_t)length >= sizeof(path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int held = open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (held < 0)
        return -1;
    int client = -1;
    int status = fstat(held, &found);
    if (status == 0 && (!S_ISSOCK(found.st_mode) || found.st_uid != uid)) {
        errno = EPERM;
        status = -1;
    }
    if (status == 0) {
        client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d", held);
    }
    while (client >= 0 && connect(client, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        if (errno == EINTR)
            continue;
        int error = errno;
        (void)close(client);
        client = -1;
        errno = error;
    }
    int error = errno;
    (void)close(held);
    errno = error;
    return client;
}

static bool has_gone(int error)
{
    return error == ENOENT || error == ECONNREFUSED || error == ECONNRESET || error == EPIPE;
}

static int send_order(int port, int grace)
{
    char order[32];
    size_t length = (size_t)snprintf(order, sizeof(order), "poweroff %d\n", grace);
    ssize_t sent;
    do
        sent = send(port, order, length, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    /* a socket takes so few bytes as one */
    return sent == (ssize_t)length ? 0 : -1;
}

/* It has said something: send more of the order to resume. False when there is nobody any more. */
static bool resume(int control, const char **rest)
{
    char answer[ANSWER_SIZE];
    ssize_t got = recv(control, answer, sizeof(answer), 0);
    if (got <= 0)
        return got < 0 && (errno == EAGAIN || errno == EINTR);
    ssize_t sent = send(control, *rest, strlen(*rest), MSG_NOSIGNAL);
    *rest += sent < 0 ? 0 : sent;
    return sent >= 0 || errno == EAGAIN || errno == EINTR;
}

/* Until the VMM has closed `port`. What it says is read and counts for nothing: it may be anybody's. */
static int await_end(int port, int control)
{
    char answer[ANSWER_SIZE];
    const char *rest = RESUME;
    struct pollfd polled[] = {{.fd = port, .events = POLLIN}, {.fd = control, .events = POLLIN}};
    for (;;) {
        if (poll(polled, 2, -1) < 0 && errno != EINTR)
            return -1;
        if (polled[0].revents != 0) {
            ssize_t got = recv(port, answer, sizeof(answer), MSG_DONTWAIT);
            if (got == 0)
                return 0;
            if (got < 0 && errno != EAGAIN && errno != EINTR)
                return -1;
        }
        if (polled[1].revents != 0 && !resume(control, &rest))
            polled[1].fd = -1;
    }
}

int guest_stop(const char *runtime, int grace)
{
    struct stat folder;
    int port = stat(runtime, &folder) < 0 ? -1 : connect_to(runtime, PORT, folder.st_uid, 0);
    if (port < 0)
        return has_gone(errno) ? 0 : -1;
    int status = send_order(port, grace);
    int control = status < 0 ? -1 : connect_to(runtime, CONTROL, folder.st_uid, SOCK_NONBLOCK);
    if (status == 0)
        status = await_end(port, control);
    int error = errno;
    if (control >= 0)
        (void)close(control);
    (void)close(port);
    errno = error;
    return status < 0 && !has_gone(error) ? -1 : 0;
}
