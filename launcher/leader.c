// SPDX-License-Identifier: Apache-2.0
#include "leader.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ports.h"
#include "say.h"

/* The VMM takes connections as soon as it serves anything. */
#define CONNECT_DEADLINE 5L

/* Send the order on the connection, or on a new one; that is kept, since QEMU drops what it has not yet given
 * to the guest when the other end goes. Returns the connection, or -1; it has said why. */
static int order_poweroff(int connection, const char *path)
{
    char order[32];
    int length = snprintf(order, sizeof(order), "poweroff %d\n", POWEROFF_GRACE);
    for (int attempt = 0; attempt < 2; attempt++) {
        if (connection < 0)
            connection = connect_socket(path, SOCK_STREAM, CONNECT_DEADLINE);
        if (connection < 0)
            break;
        if (send(connection, order, (size_t)length, MSG_NOSIGNAL) == length)
            return connection;
        int error = errno;
        (void)close(connection);
        connection = -1;
        errno = error;
    }
    say("cannot ask the guest to power off: %s", strerror(errno));
    return -1;
}

static _Noreturn void lead(const char *runtime, const sigset_t *signals)
{
    char path[256];
    (void)snprintf(path, sizeof(path), "%s/stop.sock", runtime);
    int connection = -1;
    for (;;) {
        siginfo_t info;
        if (sigwaitinfo(signals, &info) > 0)
            connection = order_poweroff(connection, path);
    }
}

int start_leader(const char *runtime)
{
    sigset_t signals;
    sigset_t before;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, POWEROFF_SIGNAL);
    (void)sigaddset(&signals, WATCHDOG_SIGNAL);
    /* before the fork, so that none comes too early */
    if (sigprocmask(SIG_BLOCK, &signals, &before) < 0)
        return -1;
    /* It has rights that the VMM loses (filter.h), and the same user: a VMM that was taken over is not to
     * write to its memory (/proc/PID/mem). Before the fork, so that there is no moment without; execve ends
     * it. */
    if (prctl(PR_SET_DUMPABLE, 0) < 0)
        return -1;
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        /* with the VMM it is the unit's main process that has ended, and nothing is left to be signalled */
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
            _exit(1);
        (void)prctl(PR_SET_NAME, "vm-leader");
        (void)close(FD_SECRETS);
        (void)close(FD_STATE);
        lead(runtime, &signals);
    }
    int error = errno;
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return pid;
}
