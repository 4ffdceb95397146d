// SPDX-License-Identifier: Apache-2.0
/* The receiver of sd_notify(3). Who may send is not asked: all that runs here is the VM's. */
#include "kinds.h"

#include "files.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { DATAGRAM_MAX = 4096, BATCH = 64 };

bool notify_open(struct probe *probe, const char *path, struct reason *why)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    (void)unlink(path);
    probe->events = POLLIN;
    probe->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (probe->fd >= 0 && bind(probe->fd, (const struct sockaddr *)&address, sizeof address) == 0 &&
        chmod(path, 0666) == 0) /* A program need not be root. */
        return true;
    int error = errno;
    close_fd(&probe->fd);
    return refuse(why, "cannot make the socket %s: %s", path, strerror(error));
}

static bool begins(const char *line, size_t size, const char *key)
{
    return size >= strlen(key) && memcmp(line, key, strlen(key)) == 0;
}

bool notify_parse(const char *datagram, size_t size, struct reason *why)
{
    static const char status[] = "STATUS=";
    bool ready = false;
    for (size_t at = 0; at < size;) {
        const char *end = memchr(datagram + at, '\n', size - at);
        size_t length = end == NULL ? size - at : (size_t)(end - (datagram + at));
        const char *line = datagram + at;
        if (length == sizeof "READY=1" - 1 && begins(line, length, "READY=1"))
            ready = true;
        else if (length > sizeof status - 1 && begins(line, length, status))
            (void)refuse(why, "%.*s", (int)(length - sizeof status + 1), line + sizeof status - 1);
        at += length + 1;
    }
    return ready;
}

enum probe_state notify_step(struct probe *probe, bool ready)
{
    char datagram[DATAGRAM_MAX];
    for (int i = 0; ready && i < BATCH; i++) {
        /* Descriptors that come along (FDSTORE=1, BARRIER=1) are not taken: so the kernel closes them. */
        ssize_t got = recv(probe->fd, datagram, sizeof datagram, MSG_TRUNC);
        if (got < 0)
            break;
        if ((size_t)got <= sizeof datagram && notify_parse(datagram, (size_t)got, &probe->why))
            return PROBE_PASSED;
    }
    return PROBE_PENDING;
}
