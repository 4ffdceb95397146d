// SPDX-License-Identifier: Apache-2.0
#include "enclosed.h"

#include "files.h"
#include "ownproc.h"
#include "signalsets.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    STATUS_SIZE = 4096,
    SYSCALL_SIZE = 256,
    PROGRAM = 2 /* its PID: the first that is made beside the reaper */
};

/* It has the program's output, for what writes to /proc/1/fd/1. With its other descriptors that of init goes
 * which waits for it: then it is what the program is to find. */
static _Noreturn void reap(int console)
{
    sigset_t all;
    (void)sigfillset(&all);
    (void)setsid();
    (void)prctl(PR_SET_NAME, "hypeman-reaper");
    int null = open("/dev/null", O_RDONLY);
    (void)dup2(null, STDIN_FILENO);
    (void)dup2(console, STDOUT_FILENO);
    (void)dup2(console, STDERR_FILENO);
    (void)syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0);
    for (;;) {
        siginfo_t info;
        int number = sigwaitinfo(&all, &info);
        if (number > 0 && number != SIGCHLD)
            (void)kill(PROGRAM, number);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            continue;
    }
}

/* Until the other end is closed. */
static void await_end(int pipe_fd)
{
    char byte;
    while (read(pipe_fd, &byte, sizeof byte) < 0 && errno == EINTR)
        continue;
}

bool enclosed_begin_reaper(struct enclosed *enclosed, int console, struct reason *why)
{
    const struct enclosure first = {.first = true, .beside = -1, .cgroup = -1};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return refuse(why, "cannot wait for the program's PID namespace: %s", strerror(errno));
    sigset_t all, before;
    (void)sigfillset(&all);
    /* The kernel drops what the namespace sends to its first process and that does not yet hold back. */
    (void)sigprocmask(SIG_SETMASK, &all, &before);
    pid_t pid = fork_into(&first);
    if (pid == 0)
        reap(console);
    int error = errno;
    (void)sigprocmask(SIG_SETMASK, &before, NULL);
    close_fd(&ends[1]);
    if (pid > 0)
        await_end(ends[0]);
    close_fd(&ends[0]);
    if (pid < 0)
        return refuse(why, "cannot make a PID namespace for the program: %s", strerror(error));
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return refuse(why, "cannot hold the program's PID namespace: %s", strerror(errno));
    enclosed->reaper = pid;
    enclosed->enclosure.first = false;
    enclosed->enclosure.beside = pidfd;
    return true;
}

struct enclosure enclosed_beside(const struct enclosed *enclosed, pid_t program)
{
    struct enclosure enclosure = {.beside = -1, .cgroup = -1};
    pid_t first = enclosed->reaper < 0 ? program : enclosed->reaper;
    if (first > 0)
        enclosure.beside = (int)syscall(SYS_pidfd_open, first, 0);
    return enclosure;
}

void enclosed_close(struct enclosed *enclosed)
{
    close_fd(&enclosed->enclosure.beside);
}

/* While it does, what it waits for counts as not blocked in its status. */
static bool waits_for_signals(pid_t pid)
{
    enum { OF_I386 = 177, OF_32_BITS = 421 };
    char path[24];
    char call[SYSCALL_SIZE];
    (void)snprintf(path, sizeof path, "%d/syscall", (int)pid);
    if (file_read_at(own_proc(), path, call, sizeof call) < 0)
        return false;
    long number = strtol(call, NULL, 10); /* 0 of one that is running: read(2) is no wait of this kind. */
    return number == SYS_rt_sigtimedwait || number == OF_I386 || number == OF_32_BITS;
}

bool enclosed_holds_back(pid_t pid, int number)
{
    char path[24];
    char status[STATUS_SIZE];
    (void)snprintf(path, sizeof path, "%d/status", (int)pid);
    if (!signal_ends(number) || waits_for_signals(pid) ||
        file_read_at(own_proc(), path, status, sizeof status) < 0)
        return false;
    const struct signal_sets sets = signal_sets_parse(status);
    /* It may have begun to wait in between. */
    return !signal_in(sets.caught | sets.ignored | sets.blocked, number) && !waits_for_signals(pid);
}
