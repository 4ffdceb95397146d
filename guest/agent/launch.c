// SPDX-License-Identifier: Apache-2.0
#include "launch.h"

#include "copy.h"
#include "files.h"
#include "health.h"
#include "inside.h"
#include "pty.h"
#include "records.h"
#include "terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SIDE_MAX = UINT16_MAX, FREE_FD = 3, PIPE_SIZE = 262144 };

/* What EXEC may say beside what the stream itself keeps. */
struct wishes {
    const char *user;
    bool terminal;
    uint16_t rows;
    uint16_t columns;
};

static bool take_number(const struct record *record, unsigned long max, unsigned long *number,
                        struct reason *why)
{
    return parse_number(record->value, max, number) ||
           refuse(why, "%.*s=%.40s: expected a number from 0 to %lu", (int)record->key_length, record->key,
                  record->value, max);
}

static bool take_setting(struct stream *stream, const struct record *record, struct wishes *wishes,
                         struct reason *why)
{
    unsigned long number;
    if (record_is(record, "cwd")) {
        stream->spawn.folder = record->value;
    } else if (record_is(record, "user")) {
        wishes->user = record->value;
    } else if (record_is(record, "tty")) {
        if (!take_number(record, 1, &number, why))
            return false;
        wishes->terminal = number == 1;
    } else if (record_is(record, "rows") || record_is(record, "cols")) {
        if (!take_number(record, SIDE_MAX, &number, why))
            return false;
        *(record_is(record, "rows") ? &wishes->rows : &wishes->columns) = (uint16_t)number;
    }
    return settings_check(record, why);
}

static bool take_records(struct stream *stream, size_t size, struct wishes *wishes, struct reason *why)
{
    size_t args = 0;
    size_t envs = 0;
    stream->spawn.settings = (struct settings){stream->records, size};
    stream->argv = calloc(records_count(stream->records, size, "arg") + 1, sizeof(char *));
    stream->given = calloc(records_count(stream->records, size, "env") + 1, sizeof(char *));
    if (stream->argv == NULL || stream->given == NULL)
        return refuse(why, "no memory");
    size_t offset = 0;
    struct record record;
    while (records_next(stream->records, size, &offset, &record)) {
        char *value = stream->records + (record.value - stream->records);
        if (record_is(&record, "arg"))
            stream->argv[args++] = value;
        else if (record_is(&record, "env") && environment_valid(value))
            stream->given[envs++] = value;
        else if (record_is(&record, "env"))
            return refuse(why, "env \"%s\": expected KEY=value", value);
        else if (!take_setting(stream, &record, wishes, why))
            return false;
    }
    if (args == 0)
        return refuse(why, "no arg: nothing to execute");
    if (!identity_find(wishes->user, &stream->who, why))
        return false;
    char hostname[HOST_NAME_MAX + 1] = "";
    if (gethostname(hostname, sizeof hostname) != 0)
        return refuse(why, "cannot learn the host name: %s", strerror(errno));
    stream->environment = environment_build(stream->given, stream->who.home, hostname, &stream->store);
    return stream->environment != NULL || refuse(why, "no memory");
}

static bool start(struct stream *stream, int in, int out, int err, struct reason *why)
{
    struct spawned spawned;
    struct enclosure enclosure;
    if (!inside_find(&enclosure, why))
        return false;
    stream->group = group_make();
    enclosure.cgroup = stream->group.fd;
    stream->spawn.argv = stream->argv;
    stream->spawn.environment = stream->environment;
    stream->spawn.who = &stream->who;
    stream->spawn.ready_fd = -1;
    stream->spawn.binary = -1;
    stream->spawn.oom_score_adj = "0";
    stream->spawn.stdio[0] = in;
    stream->spawn.stdio[1] = out;
    stream->spawn.stdio[2] = err;
    stream->spawn.enclosure = &enclosure;
    bool started = spawn_start(&stream->spawn, &spawned, why);
    stream->spawn.enclosure = NULL;
    if (!started)
        return false;
    stream->pid = spawned.pid;
    stream->verdict = spawned.verdict;
    return true;
}

/* A pipe whose end that stays here does not block, while the process's end does. It belongs to whom the
 * process does, who may so open it again, as /dev/stdout. */
static bool make_pipe(int ends[2], int ours, uid_t owner)
{
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    return fcntl(ends[ours], F_SETFL, O_NONBLOCK) == 0 && fchown(ends[ours], owner, (gid_t)-1) == 0;
}

static bool start_with_pipes(struct stream *stream, struct reason *why)
{
    int in[2] = {-1, -1};
    int out[2] = {-1, -1};
    int err[2] = {-1, -1};
    uid_t owner = stream->who.uid;
    bool started = make_pipe(in, 1, owner) && make_pipe(out, 0, owner) && make_pipe(err, 0, owner);
    if (!started)
        (void)refuse(why, "cannot make pipes: %s", strerror(errno));
    started = started && start(stream, in[0], out[1], err[1], why);
    close_fd(&in[0]);
    close_fd(&out[1]);
    close_fd(&err[1]);
    stream->input = in[1];
    stream->outputs[0].fd = out[0];
    stream->outputs[1].fd = err[0];
    return started;
}

static bool start_in_terminal(struct stream *stream, const struct wishes *wishes, struct reason *why)
{
    struct pty terminal;
    stream->kind = STREAM_TERMINAL;
    stream->spawn.terminal = true;
    if (!pty_open(&terminal, stream->who.uid, why))
        return false;
    terminal_resize(terminal.master, wishes->rows, wishes->columns);
    stream->outputs[0].fd = terminal.master;
    /* One of its own for input, which ends before output does. */
    stream->input = fcntl(terminal.master, F_DUPFD_CLOEXEC, 0);
    bool started = stream->input >= 0 || refuse(why, "cannot make a terminal: %s", strerror(errno));
    started = started && start(stream, terminal.process, terminal.process, terminal.process, why);
    close_fd(&terminal.process);
    return started;
}

bool launch_program(struct stream *stream, size_t size, struct reason *why)
{
    struct wishes wishes = {.rows = 24, .columns = 80};
    if (!take_records(stream, size, &wishes, why))
        return false;
    return wishes.terminal ? start_in_terminal(stream, &wishes, why) : start_with_pipes(stream, why);
}

/* The child is the stream's, with our ends of its pipes. False where there is none: `started`, and it could
   not be made, or what comes before that has failed. */
static bool take_child(struct stream *stream, pid_t pid, int in[2], int out[2], bool started,
                       struct reason *why)
{
    if (started && pid < 0)
        (void)refuse(why, "cannot fork: %s", strerror(errno));
    close_fd(&in[0]);
    close_fd(&out[1]);
    stream->input = in[1];
    stream->outputs[0].fd = out[0];
    if (pid > 0)
        stream->pid = pid;
    return pid > 0;
}

/* --- files --- */

/* Nothing of the agent but the two pipes may stay with a copy: it would hold other streams' ends open. */
static _Noreturn void copy_alone(const struct copy_order *order, int in, int out)
{
    int from = fcntl(in, F_DUPFD_CLOEXEC, FREE_FD);
    int to = fcntl(out, F_DUPFD_CLOEXEC, FREE_FD);
    bool alone = from >= 0 && to >= 0 && dup2(from, STDIN_FILENO) >= 0 && dup2(to, STDOUT_FILENO) >= 0 &&
                 syscall(SYS_close_range, FREE_FD, ~0U, 0) == 0;
    _exit(alone && copy_run(order, STDIN_FILENO, STDOUT_FILENO) ? EXIT_SUCCESS : EXIT_GUEST_FAILED);
}

bool launch_files(struct stream *stream, size_t size, struct reason *why)
{
    struct copy_order order;
    int in[2] = {-1, -1};
    int out[2] = {-1, -1};
    if (!copy_parse(stream->records, size, &order, why))
        return false;
    bool started = make_pipe(in, 1, geteuid()) && make_pipe(out, 0, geteuid());
    if (!started)
        (void)refuse(why, "cannot make pipes: %s", strerror(errno));
    /* Fewer turns of the two processes. What the kernel does not grant is no loss but of time. */
    (void)fcntl(in[1], F_SETPIPE_SZ, PIPE_SIZE);
    (void)fcntl(out[0], F_SETPIPE_SZ, PIPE_SIZE);
    pid_t pid = started ? fork() : -1;
    if (pid == 0)
        copy_alone(&order, in[0], out[1]);
    return take_child(stream, pid, in, out, started, why);
}

/* --- health --- */

static int lift(int fd)
{
    return fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, FREE_FD + 4);
}

/* As with a copy, but for the two descriptors by which commands are executed where the program is. */
static _Noreturn void check_alone(struct health_order *order, int in, int out)
{
    int from = lift(in);
    int to = lift(out);
    int beside = lift(order->enclosure.beside);
    int cgroup = lift(order->enclosure.cgroup);
    bool alone = from >= 0 && to >= 0 && dup2(from, STDIN_FILENO) >= 0 && dup2(to, STDOUT_FILENO) >= 0;
    order->enclosure.beside = beside < 0 ? -1 : dup3(beside, FREE_FD, O_CLOEXEC);
    order->enclosure.cgroup = cgroup < 0 ? -1 : dup3(cgroup, FREE_FD + 1, O_CLOEXEC);
    alone = alone && (order->enclosure.beside < 0) == (beside < 0) &&
            syscall(SYS_close_range, FREE_FD + 2, ~0U, 0) == 0;
    if (!alone)
        _exit(EXIT_GUEST_FAILED);
    order->place.enclosure = &order->enclosure;
    health_run(order, STDIN_FILENO, STDOUT_FILENO);
}

bool launch_health(struct stream *stream, size_t size, struct reason *why)
{
    struct health_order order;
    int in[2] = {-1, -1};
    int out[2] = {-1, -1};
    bool started = health_parse(stream->records, size, &order, why) && inside_find(&order.enclosure, why);
    if (started && !(make_pipe(in, 1, geteuid()) && make_pipe(out, 0, geteuid())))
        started = refuse(why, "cannot make pipes: %s", strerror(errno));
    if (started)
        stream->group = group_make();
    order.enclosure.cgroup = stream->group.fd;
    pid_t pid = started ? fork() : -1;
    if (pid == 0)
        check_alone(&order, in[0], out[1]);
    bool taken = take_child(stream, pid, in, out, started, why);
    free(order.given);
    free(order.environment);
    return taken;
}
