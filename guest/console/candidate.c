// SPDX-License-Identifier: Apache-2.0
#include "candidate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SIGNALLED = 128 };

static bool await_child(pid_t pid, int *status)
{
    while (waitpid(pid, status, 0) < 0)
        if (errno != EINTR)
            return false;
    return true;
}

static _Noreturn void end_like(int status)
{
    if (WIFEXITED(status))
        _exit(WEXITSTATUS(status));
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, WTERMSIG(status));
    signal(WTERMSIG(status), SIG_DFL);
    /* a core of this would tell nothing */
    prctl(PR_SET_DUMPABLE, 0);
    (void)kill(getpid(), WTERMSIG(status));
    sigprocmask(SIG_UNBLOCK, &one, NULL);
    _exit(SIGNALLED + WTERMSIG(status));
}

static _Noreturn void become(char **program, int output)
{
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (dup2(output, STDOUT_FILENO) >= 0 && dup2(output, STDERR_FILENO) >= 0)
        execv(program[0], program);
    (void)dprintf(STDERR_FILENO, "hypeman-console: %s: %s\n", program[0], strerror(errno));
    _exit(EXIT_FAILURE);
}

/* Wait until it has ended, or the console has, whose end of `console` is closed then: as the unit's main
   process it was ended by force, and so is the program that it stood for. */
static bool await_either(pid_t pid, int console)
{
    struct pollfd polled[] = {{console, 0, 0}, {(int)syscall(SYS_pidfd_open, pid, 0), POLLIN, 0}};
    while (polled[1].fd >= 0 && poll(polled, sizeof polled / sizeof *polled, -1) < 0)
        if (errno != EINTR)
            return false;
    if (polled[0].revents != 0)
        (void)kill(pid, SIGKILL);
    return polled[1].fd >= 0;
}

/* Start it, say which it is, and wait for it: as long as this process lives, it is none of systemd's
   children. A signal that is for all of the unit's processes is for the program. */
static _Noreturn void stand_between(char **program, int output, int console)
{
    sigset_t all;
    int status;
    char taken;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_NAME, "hypeman-console");
    prctl(PR_SET_DUMPABLE, 0);
    pid_t pid = fork();
    if (pid == 0)
        become(program, output);
    /* The pipe's other ends go with the program alone: whoever reads it sees that there is no end of it. */
    if (pid < 0 || dup2(console, STDIN_FILENO) != STDIN_FILENO ||
        syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0) != 0 ||
        write(STDIN_FILENO, &pid, sizeof pid) != (ssize_t)sizeof pid)
        _exit(EXIT_FAILURE);
    /* not before the console has a pidfd of it: it has none of a process whose end was taken */
    if (read(STDIN_FILENO, &taken, sizeof taken) < 0 || !await_either(pid, STDIN_FILENO) ||
        !await_child(pid, &status))
        _exit(EXIT_FAILURE);
    end_like(status);
}

bool candidate_start(struct candidate *candidate, char **program, int output)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
        return false;
    *candidate = (struct candidate){.descriptor = -1, .between = ends[0], .manager = -1};
    candidate->parent = fork();
    if (candidate->parent == 0)
        stand_between(program, output, ends[1]);
    close(ends[1]);
    if (candidate->parent < 0 ||
        read(ends[0], &candidate->pid, sizeof candidate->pid) != (ssize_t)sizeof candidate->pid)
        return false;
    candidate->descriptor = (int)syscall(SYS_pidfd_open, candidate->pid, 0);
    return candidate->descriptor >= 0 && write(ends[0], "", 1) == 1;
}

/* errno stays. */
static void leave_manager(struct candidate *candidate)
{
    int error = errno;
    close(candidate->manager);
    candidate->manager = -1;
    errno = error;
}

bool candidate_present(struct candidate *candidate)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");
    size_t length = path == NULL ? 0 : strlen(path);
    if (length == 0 || length >= sizeof address.sun_path) {
        errno = ENOENT;
        return false;
    }
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    candidate->manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    if (candidate->manager < 0)
        return false;
    if (connect(candidate->manager, (const struct sockaddr *)&address, size) == 0)
        return true;
    leave_manager(candidate);
    return false;
}

/* Have systemd be its parent: it takes another's child too, but warns of that. False: it has ended. */
static bool give_up_child(struct candidate *candidate)
{
    if (candidate->parent < 0)
        return true;
    if (kill(candidate->parent, SIGKILL) != 0 || !await_child(candidate->parent, &candidate->status))
        return false;
    candidate->parent = -1;
    /* as the program has, which was faster */
    if (!WIFSIGNALED(candidate->status) || WTERMSIG(candidate->status) != SIGKILL)
        return false;
    candidate->status = 0;
    return true;
}

bool candidate_promote(struct candidate *candidate)
{
    char words[32];
    int length = snprintf(words, sizeof words, "MAINPID=%d", (int)candidate->pid);
    bool sent = true;
    if (give_up_child(candidate))
        sent = send(candidate->manager, words, (size_t)length, MSG_NOSIGNAL) >= 0;
    if (!sent && (errno == EAGAIN || errno == EINTR))
        return true;
    leave_manager(candidate);
    return sent;
}

void candidate_signal(const struct candidate *candidate, int number)
{
    (void)syscall(SYS_pidfd_send_signal, candidate->descriptor, number, NULL, 0);
}

void candidate_kill(const struct candidate *candidate)
{
    int status;
    candidate_signal(candidate, SIGKILL);
    if (candidate->parent > 0)
        (void)await_child(candidate->parent, &status);
}

_Noreturn void candidate_follow(struct candidate *candidate)
{
    if (candidate->parent > 0 && !await_child(candidate->parent, &candidate->status))
        _exit(EXIT_FAILURE);
    end_like(candidate->status);
}
