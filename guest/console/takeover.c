// SPDX-License-Identifier: Apache-2.0
#include "takeover.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { ANSWER_MS = 5000, END_MS = 10000 };

static int connect_manager(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");
    size_t length = path == NULL ? 0 : strlen(path);
    if (length == 0 || length >= sizeof address.sun_path) {
        errno = ENOENT;
        return -1;
    }
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    int manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (manager < 0 || connect(manager, (const struct sockaddr *)&address, size) == 0)
        return manager;
    int error = errno;
    close(manager);
    errno = error;
    return -1;
}

static bool notify(int manager, char *words, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {.bytes = {0}};
    struct iovec part = {.iov_base = words, .iov_len = strlen(words)};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    return sendmsg(manager, &message, MSG_NOSIGNAL) >= 0;
}

static bool await_event(int fd, short events, int longest)
{
    struct pollfd polled = {fd, events, 0};
    int ready;
    do
        ready = poll(&polled, 1, longest);
    while (ready < 0 && errno == EINTR);
    if (ready == 0)
        errno = ETIMEDOUT;
    return ready > 0;
}

/* sd_notify(3): systemd closes the descriptor that comes with BARRIER=1 when it has taken all before it. */
static bool tell_manager(int manager)
{
    char words[32];
    char barrier[] = "BARRIER=1";
    int ends[2];
    (void)snprintf(words, sizeof words, "MAINPID=%d", (int)getpid());
    if (!notify(manager, words, -1) || pipe2(ends, O_CLOEXEC) != 0)
        return false;
    bool sent = notify(manager, barrier, ends[1]);
    close(ends[1]);
    bool done = sent && await_event(ends[0], 0, ANSWER_MS);
    int error = errno;
    close(ends[0]);
    errno = error;
    return done;
}

bool take_over(int program)
{
    int manager = connect_manager();
    bool done = manager >= 0 && tell_manager(manager);
    int error = errno;
    if (manager >= 0)
        close(manager);
    errno = error;
    return done && syscall(SYS_pidfd_send_signal, program, SIGKILL, NULL, 0) == 0 &&
           await_event(program, POLLIN, END_MS);
}
