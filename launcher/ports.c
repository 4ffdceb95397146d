// SPDX-License-Identifier: Apache-2.0
#include "ports.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "say.h"

/* as QEMU has it, too: it serves one client at a time */
#define BACKLOG 1

static const struct {
    const char *name;
    int number;
} PORTS[] = {
    {"/qmp", FD_QMP},
    {"/agent", FD_AGENT},
    {"/report", FD_REPORT},
    {"/stop", FD_STOP},
};

int place_fd(int fd, int number)
{
    if (fd == number)
        return fcntl(fd, F_SETFD, 0);
    if (dup2(fd, number) < 0) {
        int error = errno;
        (void)close(fd);
        errno = error;
        return -1;
    }
    (void)close(fd);
    return 0;
}

static int set_path(struct sockaddr_un *address, const char *folder, const char *name, const char *suffix)
{
    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    int length = snprintf(address->sun_path, sizeof(address->sun_path), "%s%s%s", folder, name, suffix);
    if (length < 0 || (size_t)length >= sizeof(address->sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    return 0;
}

static int open_port(const char *runtime, const char *name, int number)
{
    struct sockaddr_un address;
    if (set_path(&address, runtime, name, ".sock") < 0)
        return -1;
    /* that of the run before: nobody listens there */
    if (unlink(address.sun_path) < 0 && errno != ENOENT)
        return -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* Who connects before the VMM serves it waits, and need not try again and again. */
    if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, BACKLOG) < 0) {
        int error = errno;
        (void)close(fd);
        errno = error;
        return -1;
    }
    return place_fd(fd, number);
}

int open_ports(const char *runtime)
{
    for (size_t i = 0; i < sizeof(PORTS) / sizeof(PORTS[0]); i++) {
        if (open_port(runtime, PORTS[i].name, PORTS[i].number) < 0) {
            say("cannot create %s%s.sock: %s", runtime, PORTS[i].name, strerror(errno));
            return -1;
        }
    }
    return 0;
}

int connect_socket(const char *path, int type, long seconds)
{
    struct sockaddr_un address;
    if (set_path(&address, path, "", "") < 0)
        return -1;
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, FD_FREE);
    (void)close(fd);
    if (own < 0)
        return -1;
    /* for connect(2) too: it waits where the listener has as many connections as it takes */
    const struct timeval limit = {.tv_sec = seconds};
    if (setsockopt(own, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) < 0 ||
        setsockopt(own, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0 ||
        connect(own, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        int error = errno;
        (void)close(own);
        errno = error;
        return -1;
    }
    return own;
}
