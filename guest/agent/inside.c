// SPDX-License-Identifier: Apache-2.0
#include "inside.h"

#include "attach.h"
#include "files.h"
#include "programnews.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int socket_of_init = -1;
static bool expected;
static int first = -1; /* a pidfd of PID 1 there */
static int first_error;

void inside_expect(int init)
{
    socket_of_init = init;
    expected = true;
}

int inside_socket(void)
{
    return socket_of_init;
}

void inside_hear(void)
{
    struct program_news news;
    struct program_ends ends;
    while (socket_of_init >= 0) {
        if (!program_news_receive(socket_of_init, &news, &ends)) {
            if (errno == 0)
                close_fd(&socket_of_init);
            return;
        }
        if (news.ended) {
            attach_program_ended(news.code, &news.message);
            continue;
        }
        first = (int)syscall(SYS_pidfd_open, news.first, 0);
        first_error = errno;
        if (ends.output < 0)
            close_fd(&socket_of_init);
        else
            attach_program_started(news.first, &ends);
    }
}

void inside_answer(void)
{
    if (socket_of_init >= 0)
        (void)!send(socket_of_init, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    close_fd(&socket_of_init);
}

bool inside_find(struct enclosure *enclosure, struct reason *why)
{
    *enclosure = (struct enclosure){.beside = -1, .cgroup = -1};
    if (expected && first < 0)
        inside_hear();
    if (expected && first < 0)
        return first_error == 0 ? refuse(why, "the program of the VM has not been started yet")
                                : refuse(why, "the program of the VM has ended: %s", strerror(first_error));
    enclosure->beside = first;
    return true;
}
