// SPDX-License-Identifier: Apache-2.0
#include "keeper.h"

#include "announce.h"
#include "bootid.h"
#include "clock.h"
#include "devices.h"
#include "files.h"
#include "leftover.h"
#include "mounts.h"
#include "ports.h"
#include "poweroff.h"
#include "signalsets.h"
#include "spawn.h"
#include "unitfiles.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { INITRD = 3, EXEC_WAIT_MS = 5000, LISTENS_MS = 100, DEFAULT_GRACE = 10 };

struct keeper {
    char boot[BOOT_ID_LENGTH + 1];
    int run; /* RUN_FOLDER */
    int port;
    int signals;
    bool requested;
    bool passed_on;
    unsigned grace;
    int64_t deadline;
    struct stop_line line;
};

/* --- in init --- */

bool keeper_start(int init, int initrd, int stop, pid_t *keeper, struct reason *why)
{
    /* "@": systemd leaves such processes alone when it kills what is left at shutdown. */
    static char name[] = "@hypeman-init";
    static char role[] = "keeper";
    static char has_port[] = "port";
    char *const argv[] = {name, role, stop >= 0 ? has_port : NULL, NULL};
    char *const environment[] = {NULL};
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    const struct spawn spawn = {.argv = argv,
                                .environment = environment,
                                .folder = "/",
                                .stdio = {stop >= 0 ? stop : null, null, null},
                                .ready_fd = initrd,
                                .binary = init};
    struct spawned spawned;
    bool started = spawn_start(&spawn, &spawned, why);
    close_fd(&null);
    if (!started)
        return false;
    *keeper = spawned.pid;
    struct pollfd verdict = {.fd = spawned.verdict, .events = POLLIN};
    int code;
    started = poll(&verdict, 1, EXEC_WAIT_MS) == 1 &&
              spawn_settle(spawned.verdict, &spawn, &code, why) == SPAWN_STARTED;
    close_fd(&spawned.verdict);
    return started;
}

/* --- in the process itself --- */

/* Does PID 1 have an ear for the signal yet? It loses what comes before. Blocked is as good as caught, since
 * it is read from an fd then; but a fork blocks all of them for a moment, and nobody those of a crash. */
static bool init_listens(void)
{
    char status[4096];
    if (file_read("/proc/1/status", status, sizeof status) < 0)
        return false;
    const struct signal_sets sets = signal_sets_parse(status);
    return signal_in(sets.caught, SIGNAL_POWER_OFF) ||
           (signal_in(sets.blocked, SIGNAL_POWER_OFF) && !signal_in(sets.blocked, SIGSEGV));
}

static void pass_on(struct keeper *keeper)
{
    if (keeper->passed_on || !init_listens())
        return;
    keeper->passed_on = kill(1, SIGNAL_POWER_OFF) == 0;
}

static void stop_on_request(struct keeper *keeper, unsigned grace)
{
    int64_t deadline = clock_ms() + (int64_t)grace * 1000;
    if (!keeper->requested || deadline < keeper->deadline) {
        keeper->deadline = deadline;
        keeper->grace = grace;
    }
    if (!keeper->requested) {
        int mark = openat(keeper->run, STOP_REQUESTED, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        close_fd(&mark);
    }
    keeper->requested = true;
    pass_on(keeper);
}

/* The image's init has had its time. */
static _Noreturn void force_off(struct keeper *keeper)
{
    char line[SENTINEL_LINE_MAX] = "";
    char message[SENTINEL_MESSAGE_MAX];
    int length =
        snprintf(message, sizeof message,
                 "stopped on request: powered off by force, since the image's init did not within %u s",
                 keeper->grace);
    boot_id_renew(keeper->run, keeper->boot);
    leftover_words(message + length, sizeof message - (size_t)length);
    (void)kill(-1, SIGKILL); /* All but this process and PID 1. */
    announce(line, sentinel_exit(line, EXIT_SIGNAL_BASE + SIGKILL, message, keeper->boot));
    sync();
    turn_off();
}

static void on_port(struct keeper *keeper)
{
    char bytes[64];
    unsigned grace;
    for (;;) {
        ssize_t got = read(keeper->port, bytes, sizeof bytes);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return; /* Read empty, or the host is away; the next edge tells. */
        for (ssize_t i = 0; i < got; i++) {
            if (stop_line_add(&keeper->line, bytes[i], &grace))
                stop_on_request(keeper, grace);
        }
    }
}

static void on_signals(struct keeper *keeper)
{
    struct signalfd_siginfo info;
    while (read(keeper->signals, &info, sizeof info) == (ssize_t)sizeof info)
        stop_on_request(keeper, info.ssi_code == SI_QUEUE && info.ssi_int >= 0 ? (unsigned)info.ssi_int
                                                                               : DEFAULT_GRACE);
}

/* Its root is the initrd from now on: nothing of the image is held by it until the very end. */
static bool move_out(struct keeper *keeper, struct reason *why)
{
    keeper->run = open(RUN_FOLDER, O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool moved = keeper->run >= 0 && fchdir(INITRD) == 0 && chroot(".") == 0;
    int initrd = INITRD;
    close_fd(&initrd);
    return moved && mounts_early(why) && boot_id_read(keeper->boot);
}

static bool open_port(struct keeper *keeper, bool has_port)
{
    char path[DEVICE_PATH_SIZE];
    keeper->port = STDIN_FILENO;
    if (has_port)
        return true;
    if (!wait_for_device(find_port, "org.hypeman.stop", path, clock_ms() + DEVICE_WAIT_MS))
        return false;
    keeper->port = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    return keeper->port >= 0;
}

static bool prepare(struct keeper *keeper, bool has_port, int epoll)
{
    struct reason why;
    sigset_t power_off;
    (void)sigemptyset(&power_off);
    (void)sigaddset(&power_off, SIGNAL_POWER_OFF);
    (void)sigprocmask(SIG_BLOCK, &power_off, NULL);
    keeper->signals = signalfd(-1, &power_off, SFD_CLOEXEC | SFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN};
    if (!move_out(keeper, &why) || keeper->signals < 0 ||
        epoll_ctl(epoll, EPOLL_CTL_ADD, keeper->signals, &event) != 0)
        return false;
    power_off_prepare();
    /* Edge-triggered: a port whose host is away would otherwise be reported without end. Without a port the
     * agent's signal is left. */
    event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u32 = 1};
    if (open_port(keeper, has_port) && epoll_ctl(epoll, EPOLL_CTL_ADD, keeper->port, &event) == 0)
        on_port(keeper);
    return true;
}

int keeper_main(bool has_port)
{
    (void)prctl(PR_SET_NAME, "hypeman-keeper"); /* Executed by an fd, it has the fd's number for a name. */
    struct keeper keeper = {.run = -1, .port = -1, .signals = -1, .deadline = NO_DEADLINE};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0 || !prepare(&keeper, has_port, epoll))
        return EXIT_FAILURE;
    for (;;) {
        struct epoll_event event;
        int timeout = deadline_timeout(keeper.deadline);
        if (keeper.requested && !keeper.passed_on && timeout > LISTENS_MS)
            timeout = LISTENS_MS; /* No event tells when PID 1 has set up its signals. */
        int count = epoll_wait(epoll, &event, 1, timeout);
        if (count < 0 && errno != EINTR)
            return EXIT_FAILURE;
        if (count == 1 && event.data.u32 == 1)
            on_port(&keeper);
        else if (count == 1)
            on_signals(&keeper);
        if (keeper.requested)
            pass_on(&keeper);
        if (deadline_timeout(keeper.deadline) == 0)
            force_off(&keeper);
    }
}
