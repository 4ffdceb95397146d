// SPDX-License-Identifier: Apache-2.0
/* What a handle, and what ends a VM's unit (../ending), need of their host: children, signals, systemd's word
 * on the VM's unit, and the lock that a handle shares with the daemon. */
#pragma once

#include <stdbool.h>
#include <sys/types.h>

/** Longest name of a VM: hypemand/config/names.py. */
#define NAME_LENGTH 63

/** What systemd says of the VM's unit. UNIT_LIVE: it is active, or it will be without being asked, or it is
 * being stopped; UNIT_ACTIVE: of these, the VM is Running. */
enum unit_state { UNIT_UNKNOWN, UNIT_ENDED, UNIT_FAILED, UNIT_LIVE, UNIT_ACTIVE };

/** Files of the VM's handle. FILE_NOTE: the handle was started by the daemon, to follow a VM that was started
 * in another way. FILE_STARTING: the daemon is being asked to start the VM. FILE_PROCESS: locked by the
 * process that follows the VM. FILE_AGAIN: a start of the handle was asked for while that process lived, and
 * the VM had ended. */
enum file { FILE_NOTE, FILE_STARTING, FILE_LOCK, FILE_PROCESS, FILE_AGAIN };

/** `root`: of all paths, "" but in tests. `stopped`: SIGTERM has come, see await_stop. `lock`: a descriptor
 * while it is held, or -1. `process`: likewise of FILE_PROCESS. */
struct host {
    const char *root;
    const char *vm;
    int signals;
    int lock;
    int process;
    bool stopped;
    bool has_ended; /* the daemon has said so of the VM */
    bool is_news;   /* the daemon has sent a signal since this was set to false */
};

/** Block SIGCHLD and SIGURG and take them by a descriptor. Returns 0, or -1 with errno. */
int host_init(struct host *host, const char *vm, const char *root);

/** Write a line to standard error. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);

/** Send assignments to the service manager, as sd_notify(3). Nothing where nobody listens. */
void notify(const char *assignments);

/** From here on SIGTERM does not end this process, but is noted. */
void await_stop(struct host *host);

/** Run a program of /usr/bin until it has ended. `arguments` end with NULL, and begin with its name. Returns
 * its exit status, or 1 if it was killed or cannot be executed. */
int run(struct host *host, const char *const arguments[]);

/** The same, and kill it after so many milliseconds. */
int run_within(struct host *host, const char *const arguments[], int milliseconds);

/** Ask systemd. `process`: of the unit's main process or of a command beside that, or 0. */
enum unit_state ask(struct host *host, pid_t *process);

/** The same of another unit of the VM: of the pattern "hypeman@%s.service". */
enum unit_state ask_of(struct host *host, const char *pattern, pid_t *process);

/** Is the host being shut down? Not, as far as is known, where systemd does not say so within 5 s. */
bool is_shutting_down(struct host *host);

/** What the daemon has said until now, whether it was read or not, is of no matter any more. */
void forget_signals(struct host *host);

/** Wait until a signal comes, or for so many milliseconds. */
void wait_for(struct host *host, int milliseconds);

/** The same, or until that process of the VM's unit has `ended`. False, at once: it is none of its any more.
 */
bool wait_for_process(struct host *host, pid_t process, int milliseconds, bool *ended);

/** Is it there? */
bool has_file(const struct host *host, enum file file);

/** Make it. */
void make_file(const struct host *host, enum file file);

/** Remove it, if it is there. */
void remove_file(const struct host *host, enum file file);

/** Is it locked now, by the daemon or by the handle's process? */
bool is_locked(const struct host *host, enum file file);

/** Wait until it is not, or for so many milliseconds. */
void await_unlocked(struct host *host, enum file file, int milliseconds);

/** Be the process that follows the VM, until release_process or the end. */
void hold_process(struct host *host);

/** The opposite. */
void release_process(struct host *host);

/** Take the lock, shared, and wait while the daemon has it. `waited`: it had. The end of this process
 * releases it. */
void take_lock(struct host *host, bool *waited);

/** Release it. */
void release_lock(struct host *host);
