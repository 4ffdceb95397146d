// SPDX-License-Identifier: Apache-2.0
#include "stages.h"

#include "clock.h"
#include "devices.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Beyond the time that devices are waited for. */
enum { BESIDE_MS = DEVICE_WAIT_MS + 20000 };

/* How a job beside ended: one write into the pipe. */
struct verdict {
    bool done;
    struct timespec start;
    struct timespec end;
    struct reason why;
};
_Static_assert(sizeof(struct verdict) <= PIPE_BUF, "the pipe takes it whole");

bool stage_run(struct job job, void *machine, struct report *report, struct reason *why)
{
    report_stage(report, job.name);
    bool done = job.work(machine, why);
    report_stage_end(report);
    return done;
}

static _Noreturn void work_beside(struct job job, void *machine, int pipe_fd)
{
    struct verdict verdict = {.start = clock_boottime()};
    verdict.done = job.work(machine, &verdict.why);
    verdict.end = clock_boottime();
    ssize_t written;
    do
        written = write(pipe_fd, &verdict, sizeof verdict);
    while (written < 0 && errno == EINTR);
    _exit(0);
}

/* False if the process ended without a verdict, or none came in time. */
static bool read_verdict(int pipe_fd, struct verdict *verdict)
{
    int64_t deadline = clock_ms() + BESIDE_MS;
    for (;;) {
        struct pollfd poll_for = {.fd = pipe_fd, .events = POLLIN};
        int ready = poll(&poll_for, 1, deadline_timeout(deadline));
        if (ready < 0 && errno == EINTR)
            continue;
        if (ready <= 0)
            return false;
        ssize_t got = read(pipe_fd, verdict, sizeof *verdict);
        if (got >= 0 || errno != EINTR)
            return got == (ssize_t)sizeof *verdict;
    }
}

static bool take_verdict(struct job job, int pipe_fd, struct report *report, struct reason *why)
{
    struct verdict verdict = {.done = false};
    if (!read_verdict(pipe_fd, &verdict))
        return refuse(why, "the stage %s ended without a word, or not at all", job.name);
    report_stage_beside(report, (struct stage){job.name, verdict.start, verdict.end});
    if (!verdict.done)
        *why = verdict.why;
    return verdict.done;
}

bool stages_run(struct job here, struct job beside, void *machine, struct report *report, struct reason *why)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return refuse(why, "cannot begin the stage %s: %s", beside.name, strerror(errno));
    report_stage_end(report);
    pid_t pid = fork();
    if (pid == 0)
        work_beside(beside, machine, ends[1]);
    close_fd(&ends[1]);
    bool done = pid > 0 || refuse(why, "cannot begin the stage %s: %s", beside.name, strerror(errno));
    done = done && stage_run(here, machine, report, why) && take_verdict(beside, ends[0], report, why);
    close_fd(&ends[0]);
    if (done)
        (void)waitpid(pid, NULL, 0); /* It has said its last word. */
    return done;
}
