// SPDX-License-Identifier: Apache-2.0
/* The agent on the socket that stands at fd 0, telling its parent instead of PID 1 to power off. A second
 * argument: the fd on which it is told of the VM's program. */
#include "groups.h"
#include "inside.h"
#include "records.h"
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static void ready(void)
{
    (void)!write(STDOUT_FILENO, "r", 1);
}

/* Not this machine's: a test sees what would have been set. */
static int set_clock(const struct timespec *now)
{
    if (now->tv_sec < 1000) {
        errno = EINVAL;
        return -1;
    }
    return dprintf(STDOUT_FILENO, "%lld.%09ld\n", (long long)now->tv_sec, now->tv_nsec) > 0 ? 0 : -1;
}

/* Not of this machine either. */
static bool freeze(pid_t keeper, struct reason *words)
{
    static bool fails;
    fails = !fails;
    if (keeper != getppid() || !fails)
        return refuse(words, "it does not stand still");
    (void)refuse(words, "all stands still");
    return dprintf(STDOUT_FILENO, "frozen\n") > 0;
}

static bool thaw(const struct thaw *thaw, struct reason *why)
{
    if (thaw->clock.tv_sec < 1000)
        return refuse(why, "it stays frozen");
    return dprintf(STDOUT_FILENO, "%lld.%09ld %02x%02x %s\n", (long long)thaw->clock.tv_sec,
                   thaw->clock.tv_nsec, thaw->entropy[0], thaw->entropy[ENTROPY_SIZE - 1],
                   thaw->hostname == NULL ? "-" : thaw->hostname) > 0;
}

int main(int count, char **arguments)
{
    static char none[] = "";
    struct reason why;
    char groups[32];
    (void)snprintf(groups, sizeof groups, "hypeman-test-%d", (int)getpid());
    groups_begin(groups);
    unsigned long init;
    if (count > 2 && parse_number(arguments[2], 1023, &init))
        inside_expect((int)init);
    int port = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 10);
    const struct server server = {.port = port,
                                  .boot = count > 1 ? arguments[1] : none,
                                  .init = getppid(),
                                  .ready = ready,
                                  .set_clock = set_clock,
                                  .freeze = freeze,
                                  .thaw = thaw};
    if (fcntl(port, F_SETFL, O_NONBLOCK) != 0 || !serve(&server, &why)) {
        (void)fprintf(stderr, "cannot serve\n");
        return 1;
    }
    (void)close(port);
    return 0;
}
