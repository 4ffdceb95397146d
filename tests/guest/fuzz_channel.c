// SPDX-License-Identifier: Apache-2.0
/* Any bytes as what the host sends on the agent channel. Programs and copies are asked for, but none is made:
 * what would start one gives the number of a process that is not there, and signals go nowhere. */
#include "serve.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

enum { NO_PROCESS = 4000000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int __wrap_kill(pid_t pid, int number);
int __wrap_sigqueue(pid_t pid, int number, const union sigval value);
pid_t __wrap_fork(void);
bool __wrap_spawn_start(const struct spawn *spawn, struct spawned *spawned, struct reason *why);

int __wrap_kill(pid_t pid, int number)
{
    (void)pid;
    (void)number;
    return 0;
}

int __wrap_sigqueue(pid_t pid, int number, const union sigval value)
{
    (void)pid;
    (void)number;
    errno = EPERM;
    return value.sival_int % 2 == 0 ? 0 : -1;
}

pid_t __wrap_fork(void)
{
    return NO_PROCESS;
}

/* An exec that has worked: the verdict's other end is closed. */
bool __wrap_spawn_start(const struct spawn *spawn, struct spawned *spawned, struct reason *why)
{
    int ends[2];
    if (spawn->argv[0] == NULL || pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return refuse(why, "no pipe");
    (void)close(ends[1]);
    *spawned = (struct spawned){.pid = NO_PROCESS, .verdict = ends[0]};
    return true;
}

static void ready(void)
{
}

static int set_clock(const struct timespec *now)
{
    errno = EINVAL;
    return now->tv_sec < 0 || now->tv_nsec < 0 || now->tv_nsec > 999999999 ? -1 : 0;
}

static bool freeze(pid_t keeper, struct reason *words)
{
    return keeper == NO_PROCESS && !refuse(words, "frozen");
}

static bool thaw(const struct thaw *thaw, struct reason *why)
{
    for (size_t i = 0; i < thaw->network.count; i++) {
        if (thaw->network.interfaces[i].mac == NULL)
            abort();
    }
    for (size_t i = 0; i < thaw->hosts.count; i++) {
        if (thaw->hosts.all[i].address == NULL || thaw->hosts.all[i].name_count == 0)
            abort();
    }
    return (thaw->clock.tv_sec >= 0 && thaw->clock.tv_nsec >= 0 && thaw->clock.tv_nsec <= 999999999) ||
           refuse(why, "no such time");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char boot[] = "0123456789abcdef0123456789abcdef";
    int ends[2];
    sigset_t end;
    struct reason why;
    (void)sigemptyset(&end);
    (void)sigaddset(&end, SIGTERM);
    if (sigprocmask(SIG_BLOCK, &end, NULL) != 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0)
        abort();
    if (write(ends[0], data, size) != (ssize_t)size && size > 0)
        abort();
    /* It serves what is there, and sees in the same turn that it is to end. */
    if (raise(SIGTERM) != 0)
        abort();
    const struct server server = {.port = ends[1],
                                  .boot = boot,
                                  .init = NO_PROCESS,
                                  .ready = ready,
                                  .set_clock = set_clock,
                                  .freeze = freeze,
                                  .thaw = thaw};
    if (!serve(&server, &why))
        abort();
    (void)close(ends[0]);
    (void)close(ends[1]);
    return 0;
}
