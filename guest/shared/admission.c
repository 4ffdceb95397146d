// SPDX-License-Identifier: Apache-2.0
#include "admission.h"

#include "files.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

union control {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
};

void admission_give(int socket, int root)
{
    char byte = 0;
    union control control = {0};
    struct iovec part = {.iov_base = &byte, .iov_len = sizeof byte};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(sizeof root);
    memcpy(CMSG_DATA(&control.header), &root, sizeof root);
    (void)sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* The root, or -1 with errno; 0 in that: there will be none. */
static int receive(int socket)
{
    char byte;
    union control control = {0};
    struct iovec part = {.iov_base = &byte, .iov_len = sizeof byte};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    int root = -1;
    if (got < 0)
        return -1;
    errno = 0;
    if (got == (ssize_t)sizeof byte && CMSG_FIRSTHDR(&message) != NULL)
        memcpy(&root, CMSG_DATA(&control.header), sizeof root);
    return root;
}

bool admission_await(int socket, struct reason *why)
{
    static const char waits = AGENT_WAITS;
    struct pollfd poll_for = {.fd = socket, .events = POLLIN};
    (void)!write(socket, &waits, sizeof waits);
    int root;
    /* As long as it takes: init may be that of a template. */
    do
        (void)poll(&poll_for, 1, -1);
    while ((root = receive(socket)) < 0 && (errno == EAGAIN || errno == EINTR));
    bool admitted = root >= 0 && fchdir(root) == 0 && chroot(".") == 0;
    if (!admitted)
        (void)refuse(why, "it was not admitted to a root: %s", strerror(errno));
    close_fd(&root);
    return admitted;
}
