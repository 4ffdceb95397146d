// SPDX-License-Identifier: Apache-2.0
#include "trial.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { RUN_ID_MAX = 32, STAT_SIZE = 128 };

static const char guest_line[] = "HYPEMAN-";

static struct {
    bool on;
    pid_t program;
    const char *folder;
    const char *run;
    size_t matched; /* of `guest_line` */
    bool in_line;   /* that is another one */
    int64_t asleep_ms;
} trial;

void trial_begin(pid_t program, const char *folder, const char *run)
{
    trial.on = run != NULL && strlen(run) <= RUN_ID_MAX;
    trial.program = program;
    trial.folder = folder;
    trial.run = run;
}

bool trial_is_on(void)
{
    return trial.on;
}

void trial_take(const char *bytes, size_t length)
{
    for (size_t i = 0; trial.on && i < length; i++) {
        if (bytes[i] == '\n') {
            trial.in_line = false;
            trial.matched = 0;
        } else if (!trial.in_line && bytes[i] == guest_line[trial.matched]) {
            trial.on = ++trial.matched < sizeof guest_line - 1;
        } else {
            trial.in_line = true;
        }
    }
}

static bool compose_path(char path[PATH_MAX], const char *name)
{
    return snprintf(path, PATH_MAX, "%s/%s", trial.folder, name) < PATH_MAX;
}

bool trial_is_warm(void)
{
    char path[PATH_MAX];
    char run[RUN_ID_MAX + 2] = "";
    int fd = trial.on && compose_path(path, "warm") ? open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) : -1;
    if (fd < 0)
        return false;
    ssize_t got = read(fd, run, sizeof run - 1);
    close(fd);
    return got > 0 && strcmp(run, trial.run) == 0;
}

static int64_t cpu_ms(void)
{
    clockid_t clock;
    struct timespec used;
    if (clock_getcpuclockid(trial.program, &clock) != 0 || clock_gettime(clock, &used) != 0)
        return 0;
    return (int64_t)used.tv_sec * 1000 + used.tv_nsec / 1000000;
}

/* proc(5): the state is behind the name, which may have parentheses itself. */
static bool is_asleep(int tasks, const char *task)
{
    char path[NAME_MAX + sizeof "/stat"];
    char stat[STAT_SIZE];
    (void)snprintf(path, sizeof path, "%s/stat", task);
    int fd = openat(tasks, path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, stat, sizeof stat - 1);
    if (fd >= 0)
        close(fd);
    if (got <= 0)
        return false;
    stat[got] = '\0';
    const char *name_end = strrchr(stat, ')');
    return name_end != NULL && strncmp(name_end, ") S", 3) == 0;
}

/* The launcher, which may wait for a TAP device, has one thread; a VMM has more. */
static bool sleeps(void)
{
    char path[64];
    unsigned count = 0;
    bool all = true;
    (void)snprintf(path, sizeof path, "/proc/%d/task", (int)trial.program);
    DIR *tasks = opendir(path);
    const struct dirent *entry;
    while (tasks != NULL && all && (entry = readdir(tasks)) != NULL) {
        if (entry->d_name[0] == '.')
            continue;
        all = is_asleep(dirfd(tasks), entry->d_name);
        count++;
    }
    if (tasks != NULL)
        closedir(tasks);
    return all && count > 1;
}

bool trial_is_lost(void)
{
    if (!trial_is_warm())
        return false;
    if (sleeps())
        trial.asleep_ms += TRIAL_LOOK_MS;
    return trial.asleep_ms + cpu_ms() >= TRIAL_MS;
}

int trial_note_loss(void)
{
    char warm[PATH_MAX];
    char stalled[PATH_MAX];
    trial.on = false;
    return compose_path(warm, "warm") && compose_path(stalled, "stalled") ? rename(warm, stalled) : -1;
}
