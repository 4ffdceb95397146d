// SPDX-License-Identifier: Apache-2.0
#include "candidate.h"

#include <errno.h>
#include <fcntl.h>
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

/* Start it, say which it is, and wait for it: as long as this process lives, it is none of systemd's
   children. A signal that is for all of the unit's processes is for the program. */
static _Noreturn void stand_between(char **program, int output, int tell)
{
    sigset_t all;
    int status;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    prctl(PR_SET_NAME, "hypeman-console");
    prctl(PR_SET_DUMPABLE, 0);
    pid_t pid = fork();
    if (pid == 0)
        become(program, output);
    /* Whoever reads it sees that there is no end of it, or that this has gone. The pipes' other ends go with
       the program alone. */
    if (pid < 0 || write(tell, &pid, sizeof pid) != (ssize_t)sizeof pid ||
        syscall(SYS_close_range, STDERR_FILENO + 1, ~0U, 0) != 0 || !await_child(pid, &status))
        _exit(EXIT_FAILURE);
    end_like(status);
}

bool candidate_start(struct candidate *candidate, char **program, int output)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    candidate->parent = fork();
    if (candidate->parent == 0)
        stand_between(program, output, ends[1]);
    close(ends[1]);
    ssize_t got = candidate->parent < 0 ? -1 : read(ends[0], &candidate->pid, sizeof candidate->pid);
    close(ends[0]);
    if (got != (ssize_t)sizeof candidate->pid)
        return false;
    /* even if it has ended: its parent waits, or has gone */
    candidate->descriptor = (int)syscall(SYS_pidfd_open, candidate->pid, 0);
    return candidate->descriptor >= 0;
}

static bool notify(const char *words)
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
    int manager = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    bool sent = manager >= 0 && sendto(manager, words, strlen(words), MSG_NOSIGNAL,
                                       (const struct sockaddr *)&address, size) >= 0;
    int error = errno;
    if (manager >= 0)
        close(manager);
    errno = error;
    return sent;
}

bool candidate_promote(struct candidate *candidate)
{
    char words[32];
    int status;
    /* systemd takes it in, and warns of a main process that is not its child */
    if (kill(candidate->parent, SIGKILL) != 0 || !await_child(candidate->parent, &status))
        return false;
    candidate->parent = -1;
    (void)snprintf(words, sizeof words, "MAINPID=%d", (int)candidate->pid);
    return notify(words);
}

void candidate_kill(const struct candidate *candidate)
{
    int status;
    (void)syscall(SYS_pidfd_send_signal, candidate->descriptor, SIGKILL, NULL, 0);
    if (candidate->parent > 0)
        (void)await_child(candidate->parent, &status);
}

_Noreturn void candidate_follow(const struct candidate *candidate)
{
    int status;
    if (candidate->parent < 0 || !await_child(candidate->parent, &status))
        _exit(EXIT_FAILURE);
    end_like(status);
}
