// SPDX-License-Identifier: Apache-2.0
#include "programnews.h"

#include "files.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { ENDS = 5 };

/* Which of them there are goes with the news, since only those can be sent. */
struct packet {
    struct program_news news;
    bool has[ENDS];
};

union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(ENDS * sizeof(int))];
};

static int *find_end(struct program_ends *ends, size_t index)
{
    int *const all[ENDS] = {&ends->console, &ends->input, &ends->output, &ends->error, &ends->terminal};
    return all[index];
}

bool program_news_send(int socket, const struct program_news *news, const struct program_ends *ends)
{
    struct packet packet = {.news = *news};
    struct program_ends given = *ends;
    union control control = {0};
    int fds[ENDS];
    size_t count = 0;
    for (size_t i = 0; i < ENDS; i++) {
        packet.has[i] = *find_end(&given, i) >= 0;
        if (packet.has[i])
            fds[count++] = *find_end(&given, i);
    }
    struct iovec part = {.iov_base = &packet, .iov_len = sizeof packet};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = &control;
        message.msg_controllen = (socklen_t)CMSG_SPACE(count * sizeof(int));
        control.header.cmsg_level = SOL_SOCKET;
        control.header.cmsg_type = SCM_RIGHTS;
        control.header.cmsg_len = (socklen_t)CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof packet;
}

bool program_news_receive(int socket, struct program_news *news, struct program_ends *ends)
{
    struct packet packet = {0};
    union control control;
    struct iovec part = {.iov_base = &packet, .iov_len = sizeof packet};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got;
    *ends = PROGRAM_ENDS_NONE;
    /* ECONNRESET: the other end is closed, and had not been read to its end; what it sent is behind that. */
    do
        got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (got < 0 && (errno == EINTR || errno == ECONNRESET));
    if (got != (ssize_t)sizeof packet) {
        if (got >= 0)
            errno = 0;
        return false;
    }
    const struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    size_t next = 0;
    for (size_t i = 0; i < ENDS && header != NULL; i++) {
        if (packet.has[i])
            memcpy(find_end(ends, i), CMSG_DATA(header) + sizeof(int) * next++, sizeof(int));
    }
    *news = packet.news;
    return true;
}

void program_ends_close(struct program_ends *ends)
{
    for (size_t i = 0; i < ENDS; i++)
        close_fd(find_end(ends, i));
}
