// SPDX-License-Identifier: Apache-2.0
#include "tap.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ports.h"
#include "say.h"

#define CURE "systemctl status hypemand-tap.socket hypemand-network.service"
#define TEXT_SIZE 512
#define MOST_FDS 4

/* The first descriptor of a packet, or -1. All others are closed. (The kernel has put them into one part.) */
static int take_fd(struct msghdr *message)
{
    const struct cmsghdr *part = CMSG_FIRSTHDR(message);
    if (part == NULL || part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
        return -1;
    int fds[MOST_FDS];
    size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(fds[0]);
    if (count == 0 || count > MOST_FDS)
        return -1;
    memcpy(fds, CMSG_DATA(part), count * sizeof(fds[0]));
    for (size_t i = 1; i < count; i++)
        (void)close(fds[i]);
    return fds[0];
}

int tap_request(const char *path)
{
    int connection = connect_socket(path, SOCK_SEQPACKET, TAP_DEADLINE);
    if (connection >= 0)
        return connection;
    if (errno == EAGAIN)
        say("the network service did not accept the request for the TAP device within %ld s; " CURE,
            TAP_DEADLINE);
    else
        say("the network service cannot be reached: %s: %s; " CURE, path, strerror(errno));
    return -1;
}

/* What the service says is its own words: nothing of it may begin a line or control a terminal. */
static void say_refusal(const char *text, size_t length)
{
    char shown[TEXT_SIZE + 1];
    for (size_t i = 0; i < length; i++)
        shown[i] = text[i] >= 0x20 && text[i] < 0x7f ? text[i] : '?';
    shown[length] = '\0';
    say("no TAP device: %s", shown);
}

int tap_receive(int connection)
{
    char text[TEXT_SIZE];
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MOST_FDS * sizeof(int))];
    } control;
    struct iovec part = {.iov_base = text, .iov_len = sizeof(text)};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof(control.bytes),
    };
    ssize_t length;
    do
        length = recvmsg(connection, &message, MSG_CMSG_CLOEXEC);
    while (length < 0 && errno == EINTR);
    int error = errno;
    (void)close(connection);
    if (length < 0 && error == EAGAIN) {
        say("the network service did not provide the TAP device within %ld s; " CURE, TAP_DEADLINE);
        return -1;
    }
    if (length <= 0) {
        say("no answer from the network service: %s; " CURE,
            length < 0 ? strerror(error) : "the connection was closed");
        return -1;
    }
    int fd = take_fd(&message);
    if (text[0] == 'F' && length == 1 && fd >= 0)
        return fd;
    if (fd >= 0)
        (void)close(fd);
    if (text[0] == 'E')
        say_refusal(text + 1, (size_t)length - 1);
    else
        say("invalid answer from the network service; " CURE);
    return -1;
}
