// SPDX-License-Identifier: Apache-2.0
#include "host.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define FOLDER "/run/hypemand/handles"
#define MOST_ARGUMENTS 8
/* for systemd to say whether the host is being shut down */
#define ANSWER_MS 5000

int host_init(struct host *host, const char *vm, const char *root)
{
    *host = (struct host){.root = root, .vm = vm, .lock = -1, .process = -1};
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGCHLD);
    /* "look again", of the daemon: what is not ready for it yet ignores it */
    (void)sigaddset(&signals, SIGURG);
    /* the same, and it has ended with success */
    (void)sigaddset(&signals, SIGWINCH);
    if (sigprocmask(SIG_SETMASK, &signals, NULL) < 0)
        return -1;
    host->signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    return host->signals < 0 ? -1 : 0;
}

void await_stop(struct host *host)
{
    sigset_t signals;
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    (void)sigaddset(&signals, SIGCHLD);
    (void)sigaddset(&signals, SIGURG);
    (void)sigaddset(&signals, SIGWINCH);
    (void)signalfd(host->signals, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

void say(const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(line, sizeof(line) - 1, format, arguments);
    va_end(arguments);
    size_t used = strlen(line);
    line[used++] = '\n';
    /* one write: a line that is cut would be two in the journal. There is nowhere to report its failure. */
    if (write(STDERR_FILENO, line, used) < 0)
        return;
}

void notify(const char *assignments)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = path == NULL ? 0 : strlen(path);
    if (length == 0 || length >= sizeof(address.sun_path))
        return;
    memcpy(address.sun_path, path, length);
    if (address.sun_path[0] == '@')
        address.sun_path[0] = '\0';
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (sendto(fd, assignments, strlen(assignments), MSG_NOSIGNAL, (const struct sockaddr *)&address,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
        say("cannot notify systemd: %s", strerror(errno));
    (void)close(fd);
}

/* Take the signals that have come. SIGCHLD has done its work when it ends a wait. */
static void take_signals(struct host *host)
{
    struct signalfd_siginfo info;
    while (read(host->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGTERM)
            host->stopped = true;
        host->has_ended = host->has_ended || info.ssi_signo == SIGWINCH;
        host->is_news = host->is_news || info.ssi_signo == SIGURG || info.ssi_signo == SIGWINCH;
    }
}

void forget_signals(struct host *host)
{
    take_signals(host);
    host->has_ended = host->is_news = false;
}

/* Wait for a signal, or for a descriptor (-1: none) to become readable: is it, and no signal has come? */
static bool wait_once(struct host *host, int fd, int milliseconds)
{
    struct pollfd polled[] = {{.fd = host->signals, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    bool readable = poll(polled, 2, milliseconds) > 0 && polled[0].revents == 0;
    take_signals(host);
    return readable;
}

static void begin_child(void)
{
    sigset_t none;
    (void)sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

static int64_t now_ms(void)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Wait for a child, and kill it after so many milliseconds (-1: never). Returns its exit status, or 1. */
static int await_child(struct host *host, pid_t pid, int milliseconds)
{
    int status = 0;
    int64_t deadline = now_ms() + milliseconds;
    for (;;) {
        pid_t ended = waitpid(pid, &status, WNOHANG);
        if (ended == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
        if (ended < 0 && errno != EINTR)
            return 1;
        int64_t left = milliseconds < 0 ? -1 : deadline - now_ms();
        if (milliseconds >= 0 && left <= 0) {
            (void)kill(pid, SIGKILL);
            milliseconds = -1;
            left = -1;
        }
        (void)wait_once(host, -1, (int)left);
    }
}

/* Start a program of /usr/bin, with its standard output at a descriptor (-1: ours). Returns its pid or -1. */
static pid_t start_child(const struct host *host, const char *const arguments[], int output)
{
    char path[512];
    char *argv[MOST_ARGUMENTS + 1] = {NULL};
    (void)snprintf(path, sizeof(path), "%s/usr/bin/%s", host->root, arguments[0]);
    /* execve does not write to them */
    for (size_t at = 0; at < MOST_ARGUMENTS && arguments[at] != NULL; at++)
        memcpy(&argv[at], &arguments[at], sizeof(argv[at]));
    pid_t pid = fork();
    if (pid == 0) {
        begin_child();
        if (output >= 0 && dup2(output, STDOUT_FILENO) < 0)
            _exit(1);
        (void)execv(path, argv);
        say("cannot execute %s: %s", path, strerror(errno));
        _exit(1);
    }
    if (pid < 0)
        say("cannot start a process: %s", strerror(errno));
    return pid;
}

int run_within(struct host *host, const char *const arguments[], int milliseconds)
{
    pid_t pid = start_child(host, arguments, -1);
    return pid < 0 ? 1 : await_child(host, pid, milliseconds);
}

int run(struct host *host, const char *const arguments[])
{
    return run_within(host, arguments, -1);
}

/* The same, for what it prints, which is less than a pipe holds. Returns its status. */
static int run_for(struct host *host, const char *const arguments[], char *text, size_t size,
                   int milliseconds)
{
    int ends[2];
    text[0] = '\0';
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return 1;
    pid_t pid = start_child(host, arguments, ends[1]);
    int status = pid < 0 ? 1 : await_child(host, pid, milliseconds);
    (void)close(ends[1]);
    ssize_t got = read(ends[0], text, size - 1);
    text[got < 0 ? 0 : got] = '\0';
    (void)close(ends[0]);
    return status;
}

/* The value of a property in what `systemctl show` prints, or "". */
static void find_value(const char *text, const char *name, char *value, size_t size)
{
    size_t length = strlen(name);
    value[0] = '\0';
    for (const char *line = text; line != NULL && *line != '\0';) {
        const char *end = strchr(line, '\n');
        size_t whole = end == NULL ? strlen(line) : (size_t)(end - line);
        if (whole > length && whole - length - 1 < size && strncmp(line, name, length) == 0 &&
            line[length] == '=') {
            memcpy(value, line + length + 1, whole - length - 1);
            value[whole - length - 1] = '\0';
        }
        line = end == NULL ? NULL : end + 1;
    }
}

static pid_t find_process(const char *text, const char *name)
{
    char value[32];
    find_value(text, name, value, sizeof(value));
    return (pid_t)strtol(value, NULL, 10);
}

enum unit_state ask_of(struct host *host, const char *pattern, pid_t *process)
{
    char unit[NAME_LENGTH + 32];
    char text[1024];
    char state[32];
    char job[32];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    (void)snprintf(unit, sizeof(unit), pattern, host->vm);
#pragma GCC diagnostic pop
    const char *const arguments[] = {"systemctl", "show", "--property=ActiveState,Job,MainPID,ControlPID",
                                     "--",        unit,   NULL};
    *process = 0;
    if (run_for(host, arguments, text, sizeof(text), -1) != 0)
        return UNIT_UNKNOWN;
    find_value(text, "ActiveState", state, sizeof(state));
    find_value(text, "Job", job, sizeof(job));
    *process = find_process(text, "MainPID");
    if (*process == 0)
        *process = find_process(text, "ControlPID");
    bool ended = strcmp(state, "inactive") == 0;
    bool failed = strcmp(state, "failed") == 0;
    if ((ended || failed) && (job[0] == '\0' || strcmp(job, "0") == 0))
        return ended ? UNIT_ENDED : UNIT_FAILED;
    if (strcmp(state, "active") == 0 || strcmp(state, "reloading") == 0 || strcmp(state, "refreshing") == 0)
        return UNIT_ACTIVE;
    return state[0] == '\0' ? UNIT_UNKNOWN : UNIT_LIVE;
}

enum unit_state ask(struct host *host, pid_t *process)
{
    return ask_of(host, "hypeman-vm-%s.service", process);
}

bool is_shutting_down(struct host *host)
{
    char text[64];
    const char *const arguments[] = {"systemctl", "is-system-running", NULL};
    (void)run_for(host, arguments, text, sizeof(text), ANSWER_MS);
    return strcmp(text, "stopping\n") == 0;
}

/* Is it a process of the VM's unit? Its number may be another one's since systemd has said so. */
static bool is_of_unit(const struct host *host, pid_t process)
{
    char path[64];
    char wanted[NAME_LENGTH + 32];
    char text[4096];
    (void)snprintf(path, sizeof(path), "/proc/%d/cgroup", (int)process);
    (void)snprintf(wanted, sizeof(wanted), "/hypeman-vm-%s.service", host->vm);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t got = read(fd, text, sizeof(text) - 1);
    (void)close(fd);
    text[got < 0 ? 0 : got] = '\0';
    return strstr(text, wanted) != NULL;
}

void wait_for(struct host *host, int milliseconds)
{
    (void)wait_once(host, -1, milliseconds);
}

bool wait_for_process(struct host *host, pid_t process, int milliseconds, bool *ended)
{
    int fd = process > 0 ? (int)syscall(SYS_pidfd_open, process, 0) : -1;
    bool is_there = fd >= 0 && is_of_unit(host, process);
    *ended = is_there && wait_once(host, fd, milliseconds);
    if (fd >= 0)
        (void)close(fd);
    return is_there;
}

static void find_path(const struct host *host, enum file file, char *path, size_t size)
{
    static const char *const endings[] = {
        [FILE_NOTE] = "follow",     [FILE_STARTING] = "starting", [FILE_LOCK] = "lock",
        [FILE_PROCESS] = "process", [FILE_AGAIN] = "again",
    };
    (void)snprintf(path, size, "%s" FOLDER "/%s.%s", host->root, host->vm, endings[file]);
}

bool has_file(const struct host *host, enum file file)
{
    char path[512];
    find_path(host, file, path, sizeof(path));
    return access(path, F_OK) == 0;
}

void make_file(const struct host *host, enum file file)
{
    char path[512];
    find_path(host, file, path, sizeof(path));
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        say("cannot make %s: %s", path, strerror(errno));
    else
        (void)close(fd);
}

void remove_file(const struct host *host, enum file file)
{
    char path[512];
    find_path(host, file, path, sizeof(path));
    if (unlink(path) < 0 && errno != ENOENT)
        say("cannot remove %s: %s", path, strerror(errno));
}

void await_unlocked(struct host *host, enum file file, int milliseconds)
{
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid == 0) {
        begin_child();
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != parent)
            _exit(1);
        char path[512];
        find_path(host, file, path, sizeof(path));
        /* a lock of its own, which it gives up by ending */
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        _exit(fd >= 0 && flock(fd, LOCK_SH) == 0 ? 0 : 1);
    }
    int pause = milliseconds < 0 ? 1000 : milliseconds;
    if (pid < 0 || (await_child(host, pid, milliseconds) != 0 && milliseconds < 0))
        (void)wait_once(host, -1, pause);
}

bool is_locked(const struct host *host, enum file file)
{
    char path[512];
    find_path(host, file, path, sizeof(path));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool locked = fd >= 0 && flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    if (fd >= 0)
        (void)close(fd);
    return locked;
}

void take_lock(struct host *host, bool *waited)
{
    char path[512];
    *waited = false;
    find_path(host, FILE_LOCK, path, sizeof(path));
    host->lock = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    /* there is no daemon, and there was none, where there is no folder */
    while (host->lock >= 0 && flock(host->lock, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
        *waited = true;
        await_unlocked(host, FILE_LOCK, -1);
    }
}

void release_lock(struct host *host)
{
    if (host->lock >= 0)
        (void)close(host->lock);
    host->lock = -1;
}

void hold_process(struct host *host)
{
    char path[512];
    find_path(host, FILE_PROCESS, path, sizeof(path));
    host->process = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0600);
    if (host->process < 0 ? errno != ENOENT : flock(host->process, LOCK_EX) < 0)
        say("cannot lock %s: %s", path, strerror(errno));
}

void release_process(struct host *host)
{
    if (host->process >= 0)
        (void)close(host->process);
    host->process = -1;
}
