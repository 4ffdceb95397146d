// SPDX-License-Identifier: Apache-2.0
/*
 * hypeman-console RUNTIME_DIR BURST PER_HOUR PROGRAM...: runs PROGRAM in its own place, with a pipe for
 * standard output and standard error, and beside it a process that passes on what comes there, within limits.
 *
 * journald limits how many lines a unit may write, not how long they are: 10,000 lines of 48 KiB in 30 s are
 * half a gigabyte. What a guest prints is bounded here, before it is the journal's. The program never waits
 * for that, since what is too much is read and dropped; and its own words, which may be those of a guest that
 * has taken it over, go the same way.
 *
 * RUNTIME_DIR/console.end is a named pipe that the process holds until it has passed on everything: who reads
 * the journal for the end of a run waits for that.
 *
 * SIGTERM, which systemd sends when the program has ended, bounds that: a journald that does not read must
 * not keep a unit from ending.
 */
#include "limit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    /* of a pipe, what the kernel lets anybody have: so long the program does not notice that this is not
       scheduled */
    PIPE_BYTES = 1024 * 1024,
    LEAST_BURST = 1024 * 1024,
    /* less than TimeoutStopSec=, past which systemd calls the whole run a failure */
    END_SECONDS = 4,
    FIRST_ARGUMENT = 4,
};

static int64_t clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool write_out(void *to, const char *data, size_t length)
{
    (void)to;
    while (length > 0) {
        ssize_t written = write(STDOUT_FILENO, data, length);
        if (written < 0 && errno != EINTR)
            return false;
        if (written > 0) {
            data += written;
            length -= (size_t)written;
        }
    }
    return true;
}

static struct console console;

/* Wait for more, or for the end of the program: others may hold the pipe longer. False when all has come. */
static bool await_more(int from, int program)
{
    struct pollfd polled[] = {{from, POLLIN, 0}, {program, POLLIN, 0}};
    while (poll(polled, program < 0 ? 1 : 2, -1) < 0)
        if (errno != EINTR)
            return false;
    return polled[0].revents & POLLIN;
}

/* Until the program has ended. Where nothing can be passed on, it is read and dropped all the same. */
static void pass_on(int from, int program, int64_t burst, int64_t per_hour)
{
    bool fine = true;
    console_init(&console, burst, per_hour, clock_ms(), write_out, NULL);
    while (await_more(from, program)) {
        size_t room;
        char *buffer = console_room(&console, &room);
        ssize_t got = read(from, buffer, room);
        if (got == 0)
            break;
        if (got > 0 && fine)
            fine = console_take(&console, (size_t)got, clock_ms());
    }
    if (fine)
        console_end(&console, clock_ms());
}

static bool parse_bytes(const char *text, int64_t *bytes)
{
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    *bytes = value;
    return errno == 0 && *end == '\0' && end != text && value > 0 && value <= INT_MAX * 1024LL;
}

/* Held by the process beside the program alone. -1, and nobody waits, where there is none. */
static int open_mark(const char *folder)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s/console.end", folder) >= (int)sizeof path)
        return -1;
    if (mkfifo(path, S_IRUSR | S_IWUSR) != 0 && errno != EEXIST)
        return -1;
    return open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
}

static int fail(const char *what)
{
    fprintf(stderr, "hypeman-console: %s: %s\n", what, strerror(errno));
    return EXIT_FAILURE;
}

static _Noreturn void pass_on_and_exit(const int ends[2], int program, int64_t burst, int64_t per_hour)
{
    close(ends[1]);
    (void)!fcntl(ends[0], F_SETFL, O_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_NAME, "hypeman-console");
    pass_on(ends[0], program, burst, per_hour);
    _exit(EXIT_SUCCESS);
}

static void end_soon(int number)
{
    (void)number;
    alarm(END_SECONDS);
}

/* No child of the program's: it would not expect one, and machinectl's signals go to the one that it has. */
static bool start_beside(const int ends[2], int program, int64_t burst, int64_t per_hour)
{
    pid_t between = fork();
    if (between == 0) {
        /* It goes when the program has gone and what it said is passed on, or with the unit: systemd ends all
           of a program that failed at once, perhaps before this has run at all. */
        struct sigaction soon = {.sa_handler = end_soon, .sa_flags = SA_RESTART};
        sigaction(SIGTERM, &soon, NULL);
        pid_t beside = fork();
        if (beside == 0)
            pass_on_and_exit(ends, program, burst, per_hour);
        _exit(beside < 0 ? EXIT_FAILURE : EXIT_SUCCESS);
    }
    int status = EXIT_FAILURE;
    while (between > 0 && waitpid(between, &status, 0) < 0)
        if (errno != EINTR)
            return false;
    return between > 0 && status == 0;
}

int main(int count, char **words)
{
    int64_t burst, per_hour;
    if (count <= FIRST_ARGUMENT || !parse_bytes(words[2], &burst) || !parse_bytes(words[3], &per_hour) ||
        burst < LEAST_BURST) {
        fprintf(stderr, "usage: hypeman-console RUNTIME_DIR BURST PER_HOUR PROGRAM...\n");
        return EXIT_FAILURE;
    }
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return fail("cannot make a pipe");
    (void)!fcntl(ends[1], F_SETPIPE_SZ, PIPE_BYTES);
    int mark = open_mark(words[1]);
    int program = (int)syscall(SYS_pidfd_open, getpid(), 0);
    if (!start_beside(ends, program, burst, per_hour))
        return fail("cannot make a process");
    if (mark >= 0)
        close(mark);
    if (dup2(ends[1], STDOUT_FILENO) < 0 || dup2(ends[1], STDERR_FILENO) < 0)
        return fail("cannot use a pipe");
    execv(words[FIRST_ARGUMENT], words + FIRST_ARGUMENT);
    return fail(words[FIRST_ARGUMENT]);
}
