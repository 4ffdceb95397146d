// SPDX-License-Identifier: Apache-2.0
/* The process of hypeman@NAME.service, the handle of a VM: handle follow|stop|again NAME [ROOT]
 *
 * ExecStart=, `follow`, lives as long as the VM does, so that the unit is active while the VM is, with and
 * without the daemon. It ends by itself when the VM has ended, and then no VM is touched.
 *
 * Started by an administrator, by a dependency or with the host it has the daemon start the VM, and waits
 * until that is Running. Started by the daemon, to follow a VM that was started in another way, it never
 * starts one: a note says so (hypemand/vm/handle.py), which the daemon writes before it asks systemd for the
 * start. See docs/architecture.md.
 *
 * ExecStopPost=, `stop`, stops the VM, and does so only where SIGTERM has ended the first: that is, where
 * systemd was asked to stop the handle.
 *
 * `again`, of hypeman-again@NAME.service, which a start of the handle pulls in and waits for, is for a start
 * that comes when the VM has ended and the handle has not: to systemd a start of an active unit is nothing.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon.h"
#include "host.h"

/* Milliseconds between two questions to systemd where nothing tells of a change: the unit is between two of
 * its processes, or waits for its turn or its restart. */
#define FIRST_PAUSE 20
/* One of its processes has ended, and the daemon sends a signal when all have: to ask sooner costs systemd,
 * and the end itself, more time than it takes */
#define END_PAUSE 200
#define LONGEST_PAUSE 2000
/* the daemon sends a signal when the VM is Running, and may have been gone at that moment */
#define BOOT_PAUSE 5000
#define LIFE_PAUSE 60000
#define CANCEL_PAUSE 1000
#define CANCEL_TURNS 30
/* of a start that comes while the handle ends */
#define AGAIN_PAUSE 200
#define AGAIN_TURNS 50
/* no exit status */
#define START (-1)

/* Stop the VM, as was asked for. Returns the exit status: a program that has failed is a failure. */
static int stop(struct host *host)
{
    char pattern[NAME_LENGTH + 32];
    pid_t process = 0;
    bool waited = false;
    bool starting = has_file(host, FILE_STARTING);
    /* What it does with the lock later is for a start that was asked for after this stop. */
    bool is_restarted = is_locked(host, FILE_LOCK);
    remove_file(host, FILE_STARTING);
    /* The VM is stopped as well. To wait for it could be to wait for a unit that waits for this one. */
    if (is_shutting_down(host))
        return 0;
    /* a pattern may match no unit */
    (void)snprintf(pattern, sizeof(pattern), "hypeman-vm-%s.servic[e]", host->vm);
    const char *const stop_unit[] = {"systemctl", "stop", "--", pattern, NULL};
    const char *const stop_vm[] = {"hypemanctl", "stop", host->vm, NULL};
    (void)run(host, stop_unit);
    /* the daemon may be about to make the unit */
    if (starting)
        (void)run(host, stop_vm);
    take_lock(host, &waited);
    if (is_restarted)
        (void)run(host, stop_unit);
    remove_file(host, FILE_NOTE);
    if (ask(host, &process) != UNIT_FAILED)
        return 0;
    say("VM %s has failed, see: systemctl status hypeman-vm-%s.service", host->vm, host->vm);
    return 1;
}

/* The VM has ended before it was Running. Whoever waits for the start of this unit gets an error, and the
 * unit becomes inactive: nothing has failed. It is stopped by its name, which is safe while this is its
 * process. */
static int cancel(struct host *host)
{
    char unit[NAME_LENGTH + 32];
    (void)snprintf(unit, sizeof(unit), "hypeman@%s.service", host->vm);
    const char *const stop_itself[] = {"systemctl", "stop", "--no-block", "--", unit, NULL};
    say("VM %s has ended meanwhile, and is not started by this", host->vm);
    /* by which this would end otherwise, and have the VM stopped */
    await_stop(host);
    (void)run(host, stop_itself);
    for (int turns = 0; turns < CANCEL_TURNS && !host->stopped; turns++)
        wait_for(host, CANCEL_PAUSE);
    return 0;
}

static bool has_ended(enum unit_state state)
{
    return state == UNIT_ENDED || state == UNIT_FAILED;
}

static bool is_live(enum unit_state state)
{
    return state == UNIT_LIVE || state == UNIT_ACTIVE;
}

/* Was a start asked for while this was ending, and was merged with the one by which this was started? Then
 * the one that looks has been pulled in by it. */
static bool is_asked_again(struct host *host)
{
    pid_t process = 0;
    for (int turns = 0; turns < AGAIN_TURNS && !has_file(host, FILE_AGAIN); turns++) {
        if (!is_live(ask_of(host, "hypeman-again@%s.service", &process)))
            break;
        wait_for(host, FIRST_PAUSE);
    }
    return has_file(host, FILE_AGAIN);
}

/* Wait until a handle has ended whose VM has, so that the start that waits for this is one. Returns 0. */
static int await_handle(struct host *host)
{
    pid_t process = 0;
    int turns = 0;
    while (turns++ < AGAIN_TURNS && is_locked(host, FILE_PROCESS)) {
        if (!has_ended(ask(host, &process))) {
            remove_file(host, FILE_AGAIN); /* the daemon has restarted it */
            return 0;
        }
        make_file(host, FILE_AGAIN);
        await_unlocked(host, FILE_PROCESS, AGAIN_PAUSE);
    }
    /* systemd has to learn of that end, too */
    while (turns++ < AGAIN_TURNS && ask_of(host, "hypeman@%s.service", &process) == UNIT_ACTIVE &&
           has_ended(ask(host, &process)))
        wait_for(host, FIRST_PAUSE);
    return 0;
}

/* Ask systemd, and where the VM has ended, with the lock, which is held then: the daemon may be restarting
 * it. `expected`: it has ended most likely, so that the lock is taken at once. Where the daemon says so,
 * systemd need not be asked: no run begins before this process has ended. */
static enum unit_state ask_for_end(struct host *host, bool expected, pid_t *process)
{
    bool waited = false;
    bool locked = expected || host->has_ended;
    if (locked)
        take_lock(host, &waited);
    if (host->has_ended && !waited)
        return UNIT_ENDED;
    host->has_ended = false;
    enum unit_state state = ask(host, process);
    if (!locked && has_ended(state)) {
        take_lock(host, &waited);
        state = ask(host, process);
    }
    if (!has_ended(state))
        release_lock(host);
    return state;
}

/* Wait until the VM has ended. `ready`: systemd knows that it is Running. Returns the exit status, or START
 * where it is to be started instead. */
static int follow(struct host *host, bool ready)
{
    int pause = FIRST_PAUSE;
    bool ended = false;
    hold_process(host);
    forget_signals(host); /* of the run before: systemd is asked now */
    for (;;) {
        pid_t process = 0;
        host->is_news = false;
        enum unit_state state = ask_for_end(host, ended, &process);
        if (has_ended(state)) {
            remove_file(host, FILE_NOTE);
            if (!ready)
                return is_asked_again(host) ? START : cancel(host);
            return state == UNIT_FAILED ? 1 : 0;
        }
        if (state == UNIT_ACTIVE && !ready) {
            notify("READY=1\nSTATUS=Running");
            ready = true;
        }
        /* one that came after systemd had answered is no later signal's to make up for */
        if (host->is_news)
            continue;
        if (wait_for_process(host, process, ready ? LIFE_PAUSE : BOOT_PAUSE, &ended)) {
            pause = FIRST_PAUSE;
            if (ended)
                wait_for(host, END_PAUSE);
        } else {
            wait_for(host, pause);
            pause = pause * 2 > LONGEST_PAUSE ? LONGEST_PAUSE : pause * 2;
        }
    }
}

/* Have the VM started, and follow it. As `follow`. */
static int start_vm(struct host *host)
{
    const char *const arguments[] = {"hypemanctl", "start", "--wait", host->vm, NULL};
    make_file(host, FILE_STARTING);
    enum start found = start_by_daemon(host);
    int status = found == START_FAILED ? 1 : 0;
    if (found == START_REFUSED)
        status = run(host, arguments);
    remove_file(host, FILE_STARTING);
    if (status != 0)
        return status;
    /* where the daemon has ended meanwhile, systemd knows of the VM */
    if (found == START_LOST)
        return follow(host, false);
    notify("READY=1\nSTATUS=Running");
    return follow(host, true);
}

static int start(struct host *host)
{
    int status = START;
    remove_file(host, FILE_AGAIN); /* it is this start */
    if (has_file(host, FILE_NOTE)) {
        notify("STATUS=waiting until the VM is Running");
        status = follow(host, false);
    }
    while (status == START) {
        remove_file(host, FILE_AGAIN);
        release_process(host);
        release_lock(host);
        status = start_vm(host);
    }
    return status;
}

int main(int argc, char *argv[])
{
    struct host host;
    if (argc < 3 || argc > 4 || strlen(argv[2]) == 0 || strlen(argv[2]) > NAME_LENGTH) {
        say("usage: handle follow|stop|again NAME");
        return 2;
    }
    if (host_init(&host, argv[2], argc == 4 ? argv[3] : "") < 0) {
        say("cannot take signals");
        return 1;
    }
    if (strcmp(argv[1], "follow") == 0)
        return start(&host);
    if (strcmp(argv[1], "again") == 0)
        return await_handle(&host);
    /* that has ended, however it has */
    remove_file(&host, FILE_PROCESS);
    const char *code = getenv("EXIT_CODE");
    const char *status = getenv("EXIT_STATUS");
    bool asked = code != NULL && status != NULL && strcmp(code, "killed") == 0 && strcmp(status, "TERM") == 0;
    return asked ? stop(&host) : 0;
}
