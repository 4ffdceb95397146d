// SPDX-License-Identifier: Apache-2.0
/* A command, in a session of its own, whose end its pidfd tells. */
#include "kinds.h"

#include "clock.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum command_step { COMMAND_RUNS, COMMAND_KILLED };

static enum probe_state ended(struct probe *probe)
{
    int status = 0;
    int code = 0;
    struct reason words = {""};
    /* Before it is reaped: until then its number is no one else's. */
    (void)kill(-probe->pid, SIGKILL);
    while (waitpid(probe->pid, &status, 0) < 0 && errno == EINTR)
        continue;
    enum spawn_state started = spawn_settle(probe->verdict, &probe->spawn, &code, &words);
    close_fd(&probe->verdict);
    close_fd(&probe->fd);
    probe->deadline = NO_DEADLINE;
    if (probe->step == COMMAND_KILLED)
        return PROBE_FAILED; /* The reason is there. */
    if (started != SPAWN_FAILED && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return PROBE_PASSED;
    if (started != SPAWN_FAILED)
        exit_words(status, &words);
    (void)refuse(&probe->why, "exec: %.400s", words.words);
    return PROBE_FAILED;
}

enum probe_state command_begin(struct probe *probe)
{
    const struct probe_place *place = probe->place;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    probe->spawn = (struct spawn){.argv = probe->check->argv,
                                  .environment = place->environment,
                                  .folder = place->folder,
                                  .who = place->who,
                                  .stdio = {null, null, null},
                                  .ready_fd = -1,
                                  .binary = -1,
                                  .oom_score_adj = "0",
                                  .settings = place->settings,
                                  .enclosure = place->enclosure};
    struct spawned spawned;
    bool started = spawn_start(&probe->spawn, &spawned, &probe->why);
    close_fd(&null);
    if (!started)
        return PROBE_FAILED;
    probe->pid = spawned.pid;
    probe->verdict = spawned.verdict;
    probe->step = COMMAND_RUNS;
    probe->events = POLLIN;
    probe->fd = (int)syscall(SYS_pidfd_open, spawned.pid, 0);
    probe->deadline = clock_ms() + check_timeout(probe->check);
    if (probe->fd >= 0)
        return PROBE_PENDING;
    (void)refuse(&probe->why, "exec: its end cannot be waited for: %s", strerror(errno));
    (void)kill(probe->pid, SIGKILL);
    probe->step = COMMAND_KILLED;
    return ended(probe);
}

enum probe_state command_step(struct probe *probe, bool ready)
{
    if (ready)
        return ended(probe);
    if (probe->step == COMMAND_RUNS && deadline_timeout(probe->deadline) == 0) {
        (void)refuse(&probe->why, "exec: it did not end in time and was killed");
        (void)kill(-probe->pid, SIGKILL);
        (void)kill(probe->pid, SIGKILL);
        probe->step = COMMAND_KILLED;
        probe->deadline = NO_DEADLINE; /* No other begins before this one is gone. */
    }
    return PROBE_PENDING;
}
