// SPDX-License-Identifier: Apache-2.0
#include "spawn.h"

#include "environment.h"
#include "files.h"
#include "runfolder.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TRIED_SIZE = 1024, READY_FD = 3 };

enum step { STEP_STDIO, STEP_PROC, STEP_TERMINAL, STEP_SETTINGS, STEP_FOLDER, STEP_IDENTITY, STEP_EXEC };

/* What the child says of itself through the pipe that a working exec closes. Less than PIPE_BUF: one write.
 */
struct failure {
    enum step step;
    int error;
    bool exists; /* the file was there (a missing interpreter also says ENOENT) */
    bool is_folder;
    char tried[TRIED_SIZE]; /* of STEP_SETTINGS the record */
};

static _Noreturn void child_give_up(int pipe_fd, struct failure *failure, enum step step, int error)
{
    failure->step = step;
    failure->error = error;
    ssize_t written;
    do
        written = write(pipe_fd, failure, sizeof *failure);
    while (written < 0 && errno == EINTR);
    _exit(EXIT_GUEST_FAILED);
}

static bool child_stdio(const struct spawn *spawn, int *binary)
{
    /* First out of the way of 0 to 3, so that no dup2 overwrites what is still needed. */
    int sources[5] = {spawn->stdio[0], spawn->stdio[1], spawn->stdio[2], spawn->ready_fd, spawn->binary};
    for (int i = 0; i < 5; i++) {
        if (sources[i] >= 0 && (sources[i] = fcntl(sources[i], F_DUPFD_CLOEXEC, READY_FD + 1)) < 0)
            return false;
    }
    for (int i = 0; i < 4; i++) {
        if (sources[i] >= 0 && dup2(sources[i], i) < 0)
            return false;
    }
    *binary = sources[4];
    return true;
}

static void child_signals(void)
{
    struct sigaction standard = {.sa_handler = SIG_DFL};
    for (int number = 1; number < NSIG; number++)
        (void)sigaction(number, &standard, NULL); /* KILL and STOP, and libc's own, refuse. */
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static bool child_settings(const struct settings *settings, struct failure *failure)
{
    struct record failed;
    if (settings_apply(settings, &failed))
        return true;
    int error = errno;
    (void)snprintf(failure->tried, sizeof failure->tried, "%s", failed.key);
    errno = error;
    return false;
}

static bool child_identity(const struct identity *who)
{
    return setgroups(who->group_count, who->groups) == 0 && setgid(who->gid) == 0 && setuid(who->uid) == 0;
}

/* Over the one that is there: to unmount that would wait for a grace period of RCU. */
static bool child_proc(void)
{
    if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) != 0)
        return false;
    return access(SHOWN_WORDS, F_OK) != 0 || mount(SHOWN_WORDS, "/proc/cmdline", NULL, MS_BIND, NULL) == 0;
}

/* exec in every folder of PATH, as execvp does, but remembering the file that was there and would not run. */
static int exec_in_path(const struct spawn *spawn, struct failure *failure)
{
    const char *name = spawn->argv[0];
    const char *path = environment_get(spawn->environment, "PATH");
    int error = ENOENT;
    if (path == NULL)
        path = DEFAULT_PATH;
    for (;;) {
        int length = (int)strcspn(path, ":");
        char candidate[TRIED_SIZE];
        int needed =
            snprintf(candidate, sizeof candidate, "%.*s%s%s", length, path, length > 0 ? "/" : "./", name);
        struct stat status;
        if (needed > 0 && needed < TRIED_SIZE && stat(candidate, &status) == 0) {
            (void)execve(candidate, spawn->argv, spawn->environment);
            error = errno;
            failure->exists = true;
            failure->is_folder = S_ISDIR(status.st_mode);
            memcpy(failure->tried, candidate, sizeof candidate);
            if (error != EACCES)
                return error;
        } else if (needed > 0 && needed < TRIED_SIZE && errno == EACCES && !failure->exists) {
            error = EACCES;
            memcpy(failure->tried, candidate, sizeof candidate);
        }
        path += length;
        if (*path++ == '\0')
            return error;
    }
}

static int exec_file(const struct spawn *spawn, int binary, struct failure *failure)
{
    if (binary >= 0) {
        (void)syscall(SYS_execveat, binary, "", spawn->argv, spawn->environment, AT_EMPTY_PATH);
        return errno;
    }
    if (spawn->argv[0][0] == '\0')
        return ENOENT;
    if (strchr(spawn->argv[0], '/') == NULL)
        return exec_in_path(spawn, failure);
    (void)execve(spawn->argv[0], spawn->argv, spawn->environment);
    int error = errno;
    struct stat status;
    failure->exists = stat(spawn->argv[0], &status) == 0;
    failure->is_folder = failure->exists && S_ISDIR(status.st_mode);
    (void)snprintf(failure->tried, sizeof failure->tried, "%s", spawn->argv[0]);
    return error;
}

static _Noreturn void child_run(const struct spawn *spawn, int pipe_fd)
{
    struct failure failure = {0};
    int binary = -1;
    (void)setsid(); /* Cannot fail in a child that was just forked. */
    /* The pipe must not be where stdio goes. */
    int report = fcntl(pipe_fd, F_DUPFD_CLOEXEC, 2 * READY_FD + 8);
    if (report < 0 || !child_stdio(spawn, &binary))
        child_give_up(report < 0 ? pipe_fd : report, &failure, STEP_STDIO, errno);
    if (spawn->enclosure != NULL && spawn->enclosure->mounts && !child_proc())
        child_give_up(report, &failure, STEP_PROC, errno);
    if (spawn->terminal && ioctl(STDIN_FILENO, TIOCSCTTY, 0) != 0)
        child_give_up(report, &failure, STEP_TERMINAL, errno);
    if (spawn->settings.records != NULL && !child_settings(&spawn->settings, &failure))
        child_give_up(report, &failure, STEP_SETTINGS, errno);
    if (spawn->oom_score_adj != NULL)
        (void)file_write("/proc/self/oom_score_adj", 0,
                         spawn->oom_score_adj); /* A wish: nothing hangs on it. */
    if (chdir(spawn->folder) != 0)
        child_give_up(report, &failure, STEP_FOLDER, errno);
    if (spawn->who != NULL && !child_identity(spawn->who))
        child_give_up(report, &failure, STEP_IDENTITY, errno);
    child_signals();
    int error = exec_file(spawn, binary, &failure);
    child_give_up(report, &failure, STEP_EXEC, error);
}

/* Children are made in the PID namespace of this process from now on. */
static bool children_beside(int pidfd)
{
    return setns(pidfd, CLONE_NEWPID) == 0;
}

static bool children_here(void)
{
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    bool here = self >= 0 && children_beside(self);
    int error = errno;
    close_fd(&self);
    errno = error;
    return here;
}

pid_t fork_into(const struct enclosure *enclosure)
{
    if (enclosure == NULL)
        return fork();
    /* Without a stack of its own it goes on with a copy of the caller's, as by fork. */
    struct clone_args how = {.exit_signal = SIGCHLD};
    if (enclosure->first)
        how.flags |= CLONE_NEWPID;
    if (enclosure->cgroup >= 0) {
        how.flags |= CLONE_INTO_CGROUP;
        how.cgroup = (unsigned)enclosure->cgroup;
    }
    bool beside = enclosure->beside >= 0;
    if (beside && !children_beside(enclosure->beside))
        return -1;
    pid_t pid = (pid_t)syscall(SYS_clone3, &how, sizeof how);
    int error = errno;
    if (pid != 0 && beside && !children_here()) {
        /* What is made next would be among the program's processes. */
        error = errno;
        if (pid > 0)
            (void)kill(pid, SIGKILL);
        pid = -1;
    }
    errno = error;
    return pid;
}

bool spawn_start(const struct spawn *spawn, struct spawned *spawned, struct reason *why)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return refuse(why, "cannot make a pipe: %s", strerror(errno));
    pid_t pid = fork_into(spawn->enclosure);
    if (pid == 0)
        child_run(spawn, ends[1]);
    int error = errno;
    close_fd(&ends[1]);
    if (pid < 0) {
        close_fd(&ends[0]);
        return refuse(why, "cannot fork: %s", strerror(error));
    }
    *spawned = (struct spawned){.pid = pid, .verdict = ends[0]};
    return true;
}

static int explain_exec(const struct failure *failure, const struct spawn *spawn, struct reason *why)
{
    const char *name = spawn->argv[0];
    const char *path = environment_get(spawn->environment, "PATH");
    if (spawn->binary >= 0) {
        (void)refuse(why, "cannot execute %s: %s", name, strerror(failure->error));
        return EXIT_NOT_EXECUTABLE;
    }
    if (failure->tried[0] == '\0') {
        (void)refuse(why, "program \"%s\" not found in PATH (%s)", name, path == NULL ? DEFAULT_PATH : path);
        return EXIT_NOT_FOUND;
    }
    if (!failure->exists && (failure->error == ENOENT || failure->error == ENOTDIR)) {
        (void)refuse(why, "program %s not found: %s", failure->tried, strerror(failure->error));
        return EXIT_NOT_FOUND;
    }
    const char *cause = strerror(failure->error);
    if (failure->is_folder)
        cause = "it is a folder";
    else if (failure->error == ENOENT)
        cause = "it is there, but its interpreter or loader is not";
    else if (failure->error == ENOEXEC)
        cause = "it is no program for this machine, nor a script that names its interpreter";
    (void)refuse(why, "program %s cannot be executed: %s", failure->tried, cause);
    return EXIT_NOT_EXECUTABLE;
}

enum spawn_state spawn_settle(int verdict, const struct spawn *spawn, int *code, struct reason *why)
{
    struct failure failure;
    ssize_t got;
    do
        got = read(verdict, &failure, sizeof failure);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN)
        return SPAWN_PENDING;
    if (got == 0)
        return SPAWN_STARTED;
    *code = EXIT_GUEST_FAILED;
    if (got != (ssize_t)sizeof failure) {
        (void)refuse(why, "cannot learn whether %s was executed", spawn->argv[0]);
        return SPAWN_FAILED;
    }
    failure.tried[sizeof failure.tried - 1] = '\0';
    switch (failure.step) {
    case STEP_STDIO:
        (void)refuse(why, "cannot set up stdin, stdout and stderr: %s", strerror(failure.error));
        break;
    case STEP_PROC:
        (void)refuse(why, "cannot mount /proc: %s", strerror(failure.error));
        break;
    case STEP_TERMINAL:
        (void)refuse(why, "cannot make a terminal the process's own: %s", strerror(failure.error));
        break;
    case STEP_SETTINGS:
        (void)refuse(why, "cannot set %s: %s", failure.tried, strerror(failure.error));
        break;
    case STEP_FOLDER:
        (void)refuse(why, "cannot enter the working directory %s: %s", spawn->folder,
                     strerror(failure.error));
        break;
    case STEP_IDENTITY:
        (void)refuse(why, "cannot become uid %u gid %u: %s", spawn->who->uid, spawn->who->gid,
                     strerror(failure.error));
        break;
    case STEP_EXEC:
        *code = explain_exec(&failure, spawn, why);
        break;
    }
    return SPAWN_FAILED;
}

int exit_code(int status)
{
    return WIFSIGNALED(status) ? EXIT_SIGNAL_BASE + WTERMSIG(status) : WEXITSTATUS(status);
}

void exit_words(int status, struct reason *words)
{
    char text[24];
    if (WIFSIGNALED(status))
        (void)refuse(words, "killed by signal %d (%s)", WTERMSIG(status),
                     signal_name(WTERMSIG(status), text));
    else
        (void)refuse(words, "exited with code %d", WEXITSTATUS(status));
}

const char *signal_name(int number, char text[24])
{
    static const char *const names[] = {
        [SIGHUP] = "HUP",       [SIGINT] = "INT",   [SIGQUIT] = "QUIT",   [SIGILL] = "ILL",
        [SIGTRAP] = "TRAP",     [SIGABRT] = "ABRT", [SIGBUS] = "BUS",     [SIGFPE] = "FPE",
        [SIGKILL] = "KILL",     [SIGUSR1] = "USR1", [SIGSEGV] = "SEGV",   [SIGUSR2] = "USR2",
        [SIGPIPE] = "PIPE",     [SIGALRM] = "ALRM", [SIGTERM] = "TERM",   [SIGCHLD] = "CHLD",
        [SIGCONT] = "CONT",     [SIGSTOP] = "STOP", [SIGTSTP] = "TSTP",   [SIGTTIN] = "TTIN",
        [SIGTTOU] = "TTOU",     [SIGURG] = "URG",   [SIGXCPU] = "XCPU",   [SIGXFSZ] = "XFSZ",
        [SIGVTALRM] = "VTALRM", [SIGPROF] = "PROF", [SIGWINCH] = "WINCH", [SIGIO] = "IO",
        [SIGPWR] = "PWR",       [SIGSYS] = "SYS",
    };
    size_t at = number < 0 ? 0 : (size_t)number;
    if (at < sizeof names / sizeof names[0] && names[at] != NULL)
        return names[at];
    (void)snprintf(text, 24, "signal %d", number);
    return text;
}
