// SPDX-License-Identifier: Apache-2.0
/* The guest's agent on a unix socket: usage agent_on_fd LISTENING-FD BOOT-ID. Serves one connection. */
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void ready(void)
{
}

/* Not this machine's. */
static int set_clock(const struct timespec *now)
{
    errno = EPERM;
    return now->tv_sec == 1700000000 ? 0 : -1;
}

static bool freeze(pid_t keeper, struct reason *words)
{
    return keeper == getppid() || refuse(words, "another keeper");
}

static bool thaw(const struct thaw *thaw, struct reason *why)
{
    return thaw->clock.tv_sec == 1700000000 || refuse(why, "it stays frozen");
}

int main(int argc, char **argv)
{
    struct reason why;
    if (argc != 3)
        return EXIT_FAILURE;
    int port = accept(atoi(argv[1]), NULL, NULL);
    if (port < 0 || fcntl(port, F_SETFL, O_NONBLOCK) != 0 || fcntl(port, F_SETFD, FD_CLOEXEC) != 0)
        return EXIT_FAILURE;
    struct server server = {
        .port = port, .boot = argv[2], .init = getppid(), .ready = ready, .set_clock = set_clock, .freeze = freeze, .thaw = thaw};
    return serve(&server, &why) ? EXIT_SUCCESS : EXIT_FAILURE;
}
