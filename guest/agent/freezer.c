// SPDX-License-Identifier: Apache-2.0
#include "freezer.h"

#include "clock.h"
#include "detached.h"
#include "files.h"
#include "groups.h"
#include "records.h"
#include "runfolder.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LIST RUN_FOLDER "/frozen"
/* Of the processes that are in a group above others: the root of the hierarchy itself cannot be frozen. */
#define ASIDE "hypeman-frozen"

enum {
    LIST_MAX = 4 << 20,
    PID_SIZE = 16,
    STATUS_SIZE = 1024,
    KERNEL_THREAD = 0x00200000,
    SPARED = 3,
    KTHREADD = 2, /* its PID, in the first PID namespace, which is the agent's */
    PASSES_MAX = 16
};

/* The file systems stay open once they are: to mount one, and to release it, takes milliseconds. */
static int hierarchy_fd = -1;
static int proc_fd = -1; /* of the agent's own PID namespace */

static int open_once(int *fd, const char *type)
{
    if (*fd < 0)
        *fd = mount_detached(type);
    return *fd;
}

/* One freezing. */
struct freezing {
    int proc;
    int list;
    int64_t deadline;
    pid_t spared[SPARED];
    char spared_groups[SPARED][PATH_MAX]; /* below the root of the hierarchy, "" for that itself */
    bool changed;
    struct reason *why;
};

/* --- processes --- */

static bool read_of(const struct freezing *freezing, pid_t pid, const char *name, char *text, size_t size)
{
    char path[PID_SIZE + 16];
    (void)snprintf(path, sizeof path, "%d/%s", (int)pid, name);
    return file_read_at(freezing->proc, path, text, size) > 0;
}

/* proc(5): the fields after the name, which may hold anything; the seventh of them is flags. */
static bool parse_stat(const char *text, char *state, unsigned long *flags)
{
    enum { FLAGS = 6 };
    const char *at = strrchr(text, ')');
    if (at == NULL || at[1] != ' ')
        return false;
    at += 2;
    *state = *at;
    for (int field = 0; field < FLAGS && at != NULL; field++) {
        at = strchr(at, ' ');
        at = at == NULL ? NULL : at + 1;
    }
    *flags = at == NULL ? 0 : strtoul(at, NULL, 10);
    return at != NULL;
}

/* The kernel's threads, of which the root group has some fifty, and what has ended have no memory: as
 * kthreadd has none, kcmp(2), and in proc_pid_statm(5). A file for each would take as long as all else of a
 * freezing. */
static bool has_memory(const struct freezing *freezing, pid_t pid)
{
    char text[STATUS_SIZE];
    return syscall(SYS_kcmp, KTHREADD, pid, KCMP_VM, 0UL, 0UL) != 0 &&
           read_of(freezing, pid, "statm", text, sizeof text) && text[0] != '0';
}

static bool is_to_freeze(const struct freezing *freezing, pid_t pid)
{
    for (size_t i = 0; i < SPARED; i++) {
        if (pid == freezing->spared[i])
            return false;
    }
    return has_memory(freezing, pid);
}

static bool find_group(const struct freezing *freezing, pid_t pid, char group[PATH_MAX])
{
    char text[PATH_MAX];
    group[0] = '\0';
    if (!read_of(freezing, pid, "cgroup", text, sizeof text))
        return false;
    const char *line = strncmp(text, "0::/", 4) == 0 ? text : strstr(text, "\n0::/");
    if (line == NULL)
        return false;
    line = strchr(line, '/') + 1;
    (void)snprintf(group, PATH_MAX, "%.*s", (int)strcspn(line, "\n"), line);
    return true;
}

typedef bool each_process(int to, pid_t pid, void *context);

/* For every process of a group, until one says no. False with errno of the last. */
static bool for_each_process(int group, each_process *act, int to, void *context)
{
    char text[4096];
    int number = 0;
    ssize_t got = -1;
    bool done = true;
    int processes = openat(group, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    while (done && processes >= 0 && (got = read(processes, text, sizeof text)) > 0) {
        for (ssize_t i = 0; done && i < got; i++) {
            if (text[i] != '\n') {
                number = number * 10 + (text[i] - '0');
                continue;
            }
            done = number == 0 || act(to, number, context);
            number = 0;
        }
    }
    int error = errno;
    close_fd(&processes);
    errno = error;
    return done && got == 0;
}

/* A process that has ended meanwhile need not be moved. */
static bool move_process(int group, pid_t pid)
{
    char number[PID_SIZE];
    (void)snprintf(number, sizeof number, "%d", (int)pid);
    return file_write_at(group, "cgroup.procs", 0, number) || errno == ESRCH;
}

/* --- freeze --- */

static bool is_gone(int error)
{
    return error == ENOENT || error == ENODEV;
}

static bool note(const struct freezing *freezing, const char *path, const char *name)
{
    char line[PATH_MAX + 2];
    int length = snprintf(line, sizeof line, "%s%s%s\n", path, *path == '\0' ? "" : "/", name);
    if (length < 0 || (size_t)length >= sizeof line)
        return refuse(freezing->why, "the path of the control group %s is too long", name);
    ssize_t written;
    do
        written = write(freezing->list, line, (size_t)length);
    while (written < 0 && errno == EINTR);
    return written == length ||
           refuse(freezing->why, "cannot write " LIST ": %s", strerror(written < 0 ? errno : ENOSPC));
}

/* A group that somebody in the guest has frozen stays so when this thaws. */
static bool freeze_group(struct freezing *freezing, int level, const char *path, const char *name)
{
    char knob[NAME_MAX + 32];
    char now[8];
    (void)snprintf(knob, sizeof knob, "%s/cgroup.freeze", name);
    ssize_t got = file_read_at(level, knob, now, sizeof now);
    if (got < 0 && !is_gone(errno))
        return refuse(freezing->why, "cannot freeze the control group %s: %s", name, strerror(errno));
    if (got < 0 || now[0] == '1')
        return true;
    freezing->changed = true;
    return note(freezing, path, name) &&
           (file_write_at(level, knob, 0, "1") || is_gone(errno) ||
            refuse(freezing->why, "cannot freeze the control group %s: %s", name, strerror(errno)));
}

struct level {
    struct freezing *freezing;
    int fd;
    const char *path;
    int aside; /* the group for its own processes, once there is one */
};

static bool open_aside(struct level *level)
{
    if (mkdirat(level->fd, ASIDE, 0755) != 0 && errno != EEXIST)
        return refuse(level->freezing->why, "cannot make the control group " ASIDE ": %s", strerror(errno));
    /* First frozen, then filled: nothing in it makes processes. */
    if (!freeze_group(level->freezing, level->fd, level->path, ASIDE))
        return false;
    level->aside = openat(level->fd, ASIDE, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return level->aside >= 0 ||
           refuse(level->freezing->why, "cannot open the control group " ASIDE ": %s", strerror(errno));
}

static bool set_aside(int unused, pid_t pid, void *context)
{
    (void)unused;
    struct level *level = context;
    if (!is_to_freeze(level->freezing, pid))
        return true;
    level->freezing->changed = true;
    if (level->aside < 0 && !open_aside(level))
        return false;
    return move_process(level->aside, pid) ||
           refuse(level->freezing->why, "cannot move process %d to the control group " ASIDE ": %s", (int)pid,
                  strerror(errno));
}

/* Is one of those that go on in this group, or below it? */
static bool holds_spared(const struct freezing *freezing, const char *path, const char *name)
{
    char group[PATH_MAX];
    int length = snprintf(group, sizeof group, "%s%s%s", path, *path == '\0' ? "" : "/", name);
    if (length < 0 || (size_t)length >= sizeof group)
        return false;
    for (size_t i = 0; i < SPARED; i++) {
        const char *spared = freezing->spared_groups[i];
        if (strncmp(spared, group, (size_t)length) == 0 && (spared[length] == '/' || spared[length] == '\0'))
            return true;
    }
    return false;
}

static bool freeze_children(struct level *level)
{
    int folder = openat(level->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (entries == NULL) {
        close_fd(&folder);
        return refuse(level->freezing->why, "cannot list control groups: %s", strerror(errno));
    }
    bool done = true;
    for (const struct dirent *entry = readdir(entries); done && entry != NULL; entry = readdir(entries)) {
        if (entry->d_type == DT_DIR && entry->d_name[0] != '.' &&
            !holds_spared(level->freezing, level->path, entry->d_name))
            done = freeze_group(level->freezing, level->fd, level->path, entry->d_name);
    }
    (void)closedir(entries);
    return done;
}

static bool freeze_level(struct freezing *freezing, int fd, const char *path)
{
    struct level level = {freezing, fd, path, -1};
    bool done = freeze_children(&level);
    if (done && !for_each_process(fd, set_aside, -1, &level))
        done =
            freezing->why->words[0] != '\0'
                ? false
                : refuse(freezing->why, "cannot list the processes of a control group: %s", strerror(errno));
    close_fd(&level.aside);
    return done;
}

/* From the root of the hierarchy down to the agent's own group: what is beside that way. */
static bool freeze_beside(struct freezing *freezing, int hierarchy)
{
    char path[PATH_MAX] = "";
    const char *rest = strcmp(groups_own(), ".") == 0 ? "" : groups_own();
    int level = fcntl(hierarchy, F_DUPFD_CLOEXEC, 0);
    bool done = level >= 0 || refuse(freezing->why, "cannot open control groups: %s", strerror(errno));
    while (done && (done = freeze_level(freezing, level, path)) && *rest != '\0') {
        rest += strcspn(rest, "/");
        (void)snprintf(path, sizeof path, "%.*s", (int)(rest - groups_own()), groups_own());
        rest += *rest == '/' ? 1 : 0;
        close_fd(&level);
        level = openat(hierarchy, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        done = level >= 0 ||
               refuse(freezing->why, "cannot open the control group %s: %s", path, strerror(errno));
    }
    close_fd(&level);
    return done;
}

/* What begins while this goes on is found in the next pass. */
static bool freeze_all(struct freezing *freezing, int hierarchy)
{
    do {
        freezing->changed = false;
        if (!freeze_beside(freezing, hierarchy))
            return false;
        if (freezing->changed && deadline_timeout(freezing->deadline) == 0)
            return refuse(freezing->why, "new processes come faster than they can be frozen");
    } while (freezing->changed);
    return true;
}

static bool is_waiting(const struct freezing *freezing, const char *pid, struct reason *why)
{
    char path[NAME_MAX + 8];
    char text[STATUS_SIZE];
    char state;
    unsigned long flags;
    (void)snprintf(path, sizeof path, "%s/stat", pid);
    if (file_read_at(freezing->proc, path, text, sizeof text) <= 0 || !parse_stat(text, &state, &flags) ||
        state != 'D' || (flags & KERNEL_THREAD) != 0)
        return false;
    *strrchr(text, ')') = '\0';
    const char *name = strchr(text, '(');
    (void)refuse(why, "%s is not frozen within %d s: it waits for the kernel (state D)",
                 name == NULL ? pid : name + 1, FREEZER_MS / 1000);
    return true;
}

/* Which process is it? The first that can be. */
static void name_waiting(const struct freezing *freezing)
{
    unsigned long pid;
    int folder = openat(freezing->proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = folder < 0 ? NULL : fdopendir(folder);
    if (entries == NULL) {
        close_fd(&folder);
        return;
    }
    bool found = false;
    for (const struct dirent *entry = readdir(entries); !found && entry != NULL; entry = readdir(entries))
        found =
            parse_number(entry->d_name, INT_MAX, &pid) && is_waiting(freezing, entry->d_name, freezing->why);
    (void)closedir(entries);
}

/* The kernel reports every change of the file by POLLPRI. */
static bool await_frozen(struct freezing *freezing, int hierarchy, const char *path)
{
    char text[128];
    char name[PATH_MAX + 16];
    (void)snprintf(name, sizeof name, "%s/cgroup.events", path);
    int events = openat(hierarchy, name, O_RDONLY | O_CLOEXEC);
    bool frozen = false;
    bool gone = events < 0 && is_gone(errno);
    while (events >= 0 && !frozen && !gone) {
        ssize_t got = pread(events, text, sizeof text - 1, 0);
        gone = got < 0 && is_gone(errno);
        text[got < 0 ? 0 : got] = '\0';
        frozen = strstr(text, "frozen 1") != NULL;
        int timeout = deadline_timeout(freezing->deadline);
        struct pollfd change = {.fd = events, .events = POLLPRI};
        if (frozen || gone || timeout == 0)
            break;
        (void)poll(&change, 1, timeout);
    }
    if (!frozen && !gone) {
        (void)refuse(freezing->why, "the control group %s is not frozen within %d s", path,
                     FREEZER_MS / 1000);
        name_waiting(freezing);
    }
    close_fd(&events);
    return frozen || gone;
}

static char *next_line(char **rest)
{
    char *line = *rest;
    size_t length = strcspn(line, "\n");
    if (line[length] == '\0')
        return NULL; /* Cut short: it was not frozen either. */
    line[length] = '\0';
    *rest = line + length + 1;
    return line;
}

static bool await_all(struct freezing *freezing, int hierarchy)
{
    char *list = file_load(LIST, LIST_MAX);
    if (list == NULL)
        return refuse(freezing->why, "cannot read " LIST ": %s", strerror(errno));
    char *rest = list;
    bool frozen = true;
    for (const char *path; frozen && (path = next_line(&rest)) != NULL;)
        frozen = await_frozen(freezing, hierarchy, path);
    free(list);
    return frozen;
}

static bool freeze(struct freezing *freezing, int hierarchy)
{
    if (hierarchy < 0 || groups_own() == NULL)
        return refuse(freezing->why, "the guest's kernel has no control groups (version 2)");
    if (freezing->proc < 0)
        return refuse(freezing->why, "cannot list processes: %s", strerror(errno));
    if (!folder_make(RUN_FOLDER, 0755) ||
        (freezing->list = open(LIST, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600)) < 0)
        return refuse(freezing->why, "cannot write " LIST ": %s", strerror(errno));
    for (size_t i = 0; i < SPARED; i++)
        (void)find_group(freezing, freezing->spared[i], freezing->spared_groups[i]);
    return freeze_all(freezing, hierarchy) && await_all(freezing, hierarchy);
}

bool freezer_freeze(pid_t keeper, struct reason *why)
{
    struct reason ignored = {""};
    struct freezing freezing = {.proc = open_once(&proc_fd, "proc"),
                                .list = -1,
                                .deadline = clock_ms() + FREEZER_MS,
                                .spared = {1, getpid(), keeper},
                                .why = why};
    why->words[0] = '\0';
    bool frozen = freeze(&freezing, open_once(&hierarchy_fd, "cgroup2"));
    if (!frozen && freezing.list >= 0 && freezer_thaw(&ignored))
        freezer_tidy();
    close_fd(&freezing.list);
    return frozen;
}

/* --- thaw --- */

static bool move_back(int to, pid_t pid, void *moved)
{
    if (move_process(to, pid))
        *(bool *)moved = true;
    return true;
}

/* Those that it holds go on as soon as they are out of it; one that cannot be moved goes on where it is.
 * While they move the kernel's list of them may leave some out. */
static void empty_aside(int hierarchy, const char *path)
{
    char above[PATH_MAX];
    bool moved = true;
    (void)snprintf(above, sizeof above, "%s/..", path);
    int group = openat(hierarchy, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int parent = openat(hierarchy, above, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int pass = 0; pass < PASSES_MAX && moved && group >= 0 && parent >= 0; pass++) {
        moved = false;
        (void)for_each_process(group, move_back, parent, &moved);
    }
    close_fd(&parent);
    close_fd(&group);
}

static bool is_aside(const char *path)
{
    const char *name = strrchr(path, '/');
    return strcmp(name == NULL ? path : name + 1, ASIDE) == 0;
}

static bool thaw_group(int hierarchy, const char *path, struct reason *why)
{
    char knob[PATH_MAX + 16];
    if (is_aside(path))
        empty_aside(hierarchy, path);
    (void)snprintf(knob, sizeof knob, "%s/cgroup.freeze", path);
    return file_write_at(hierarchy, knob, 0, "0") || is_gone(errno) ||
           refuse(why, "cannot thaw the control group %s: %s", path, strerror(errno));
}

bool freezer_thaw(struct reason *why)
{
    char *list = file_load(LIST, LIST_MAX);
    if (list == NULL)
        return errno == ENOENT || refuse(why, "cannot read " LIST ": %s", strerror(errno));
    int hierarchy = open_once(&hierarchy_fd, "cgroup2");
    bool thawed = hierarchy >= 0 || refuse(why, "cannot open control groups: %s", strerror(errno));
    char *rest = list;
    for (const char *path; hierarchy >= 0 && (path = next_line(&rest)) != NULL;)
        thawed = thaw_group(hierarchy, path, why) && thawed;
    free(list);
    return thawed;
}

/* One that is still held by a process stays. What is listed although it is thawed is thawed once more by an
 * agent that is started anew, which does no harm. */
void freezer_tidy(void)
{
    char *list = file_load(LIST, LIST_MAX);
    char *rest = list;
    if (list == NULL)
        return;
    for (const char *path; (path = next_line(&rest)) != NULL;) {
        if (is_aside(path))
            (void)unlinkat(hierarchy_fd, path, AT_REMOVEDIR);
    }
    (void)unlink(LIST);
    free(list);
}

bool freezer_is_frozen(void)
{
    return access(LIST, F_OK) == 0;
}
