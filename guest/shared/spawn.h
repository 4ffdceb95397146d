/* SPDX-License-Identifier: Apache-2.0 */
/* Start a process, and learn whether its exec worked without waiting for it. */
#ifndef HYPEMAN_SPAWN_H
#define HYPEMAN_SPAWN_H

#include "identity.h"
#include "reason.h"
#include "settings.h"

#include <sys/types.h>

enum {
    EXIT_GUEST_FAILED = 125,
    EXIT_NOT_EXECUTABLE = 126,
    EXIT_NOT_FOUND = 127,
    EXIT_SIGNAL_BASE = 128,
};

/* SIGRTMIN+4 as everybody else counts it, by glibc's SIGRTMIN of 34: "power off" to a PID 1. musl's SIGRTMIN
 * is 35. */
enum { SIGNAL_POWER_OFF = 38 };

/* Where a process begins. */
struct enclosure {
    bool first;  /* as PID 1 of a PID namespace of its own */
    int beside;  /* or a pidfd: in the PID namespace of that process; or -1: in the caller's */
    int cgroup;  /* an fd of a control group, or -1: in the caller's */
    bool mounts; /* it mounts the /proc of its PID namespace over the other, for all who share its root
                  */
};

struct spawn {
    char *const *argv;        /* argv[0] is looked up in PATH of `environment` if it has no slash */
    char *const *environment; /* NULL-ended, with PATH */
    const char *folder;       /* working directory; must exist */
    const struct identity *who;
    int stdio[3];
    int ready_fd; /* becomes fd 3 of the process, or -1 */
    int binary;   /* an fd to execute instead of looking argv[0] up, or -1 */
    const char *oom_score_adj;
    bool terminal; /* stdio[0] is one, and becomes the process's own */
    struct settings settings;
    const struct enclosure *enclosure; /* NULL: the caller's own */
};

struct spawned {
    pid_t pid;
    int verdict; /* readable, non-blocking, once exec has worked or failed: give it to spawn_settle */
};

enum spawn_state { SPAWN_PENDING, SPAWN_STARTED, SPAWN_FAILED };

/* fork(2) into an enclosure, or NULL: the caller's own. -1 with errno. */
pid_t fork_into(const struct enclosure *enclosure);

/* Fork a process in a session of its own. The caller's fds must be close-on-exec. False if there is no fork.
 */
bool spawn_start(const struct spawn *spawn, struct spawned *spawned, struct reason *why);

/* What has become of the exec. SPAWN_FAILED gives the exit code (125, 126, 127) and the words. */
enum spawn_state spawn_settle(int verdict, const struct spawn *spawn, int *code, struct reason *why);

/* The wait status of a process as an exit code, and in words. */
int exit_code(int status);
void exit_words(int status, struct reason *words);

/* A signal's name without SIG, or "signal N" in `text`. */
const char *signal_name(int number, char text[24]);

#endif
