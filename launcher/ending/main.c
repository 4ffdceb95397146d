// SPDX-License-Identifier: Apache-2.0
/* What a VM's unit executes when it ends, as root and outside of the VMM's sandbox. It needs no daemon.
 *
 * ending [--root=DIR] stop RUNTIME_DIR GRACE_SECONDS STATE_DIR [VM], with $MAINPID of systemd's: ExecStop=.
 * Ask the guest to power off, also one that is paused, and wait for the VMM's end. With VM a shutdown of the
 * host puts it into Standby, which is the daemon's to do. Whatever goes wrong here, systemd ends the VMM by
 * signal afterwards. A VMM that has ended is no error: systemd executes ExecStop= also after a guest that has
 * powered off by itself. The unit's TimeoutStopSec= bounds each step of its end, of which this is the first,
 * and the only one that may take long: as long as the guest may, for which systemd is notified here.
 *
 * ending [--root=DIR] record STATE_DIR UNIT RUNTIME_DIR COMMAND…: ExecStopPost=. Execute COMMAND, which finds
 * out how the run has ended (hypemand/unit/exit.py), unless that is known: it was put into Standby, and the
 * daemon has written that down. To start a Python for that takes longer than all else at the end of a unit.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "../handle/host.h"
#include "guest.h"
#include "run.h"

/* Seconds beyond the grace of the guest's program: to sync, to power off and for the VMM to end. */
#define POWER_OFF 5
/* what systemd gives a service to stop by default, in seconds */
#define SAVE_DEADLINE 60
#define LONGEST_GRACE 86400
/* for systemd to read: a host that shuts down has many units that are stopped at once */
#ifndef NOTIFY_MS
#define NOTIFY_MS 30000L
#endif

static const char *root = "";

/* As sd_pid_notify(3) in the name of process `pid`. Returns 0, or -1 with errno. */
static int notify_for(pid_t pid, const char *assignments)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {NOTIFY_MS / 1000, NOTIFY_MS % 1000 * 1000};
    struct ucred credentials = {.pid = pid, .uid = getuid(), .gid = getgid()};
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(credentials))];
    } control = {0};
    struct iovec words = {.iov_len = strlen(assignments)};
    struct msghdr message = {.msg_name = &address,
                             .msg_namelen = sizeof(address),
                             .msg_iov = &words,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof(control.space)};
    /* sendmsg does not write to it */
    memcpy(&words.iov_base, &assignments, sizeof(words.iov_base));
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_CREDENTIALS;
    control.header.cmsg_len = CMSG_LEN(sizeof(credentials));
    memcpy(CMSG_DATA(&control.header), &credentials, sizeof(credentials));
    (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/run/systemd/notify", root);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int status = setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    if (status == 0)
        status = sendmsg(fd, &message, MSG_NOSIGNAL) < 0 ? -1 : 0;
    int error = errno == EAGAIN ? ETIMEDOUT : errno;
    (void)close(fd);
    errno = error;
    return status;
}

/* Have systemd wait so long for the end of this process, if it would wait for less. */
static void wait_longer(int seconds)
{
    char words[64];
    const char *main_pid = getenv("MAINPID");
    if (main_pid == NULL)
        return;
    (void)snprintf(words, sizeof(words), "EXTEND_TIMEOUT_USEC=%lld", (long long)seconds * 1000000);
    /* ESRCH: the VMM has gone */
    if (notify_for((pid_t)strtol(main_pid, NULL, 10), words) < 0 && errno != ESRCH)
        say("cannot tell systemd to wait %d s: %s", seconds, strerror(errno));
}

/* Where the host shuts down: have the daemon put the VM into Standby. */
static bool save(const char *vm, int grace)
{
    struct host host;
    const char *const arguments[] = {"hypemanctl", "standby", vm, NULL};
    if (host_init(&host, vm, root) < 0) {
        say("cannot take signals: %s", strerror(errno));
        return false;
    }
    if (!is_shutting_down(&host))
        return false;
    wait_longer(grace + POWER_OFF + SAVE_DEADLINE);
    if (run_within(&host, arguments, SAVE_DEADLINE * 1000) == 0)
        return true;
    say("VM %s is stopped instead of being put into standby", vm);
    return false;
}

/* The id of the run that ends. */
static const char *own_run(void)
{
    const char *run = getenv("INVOCATION_ID");
    return run == NULL ? "" : run;
}

static int stop(const char *runtime, const char *seconds, const char *state, const char *vm)
{
    char *end = NULL;
    long grace = strtol(seconds, &end, 10);
    if (end == seconds || *end != '\0' || grace < 0 || grace > LONGEST_GRACE) {
        say("%s: expected seconds, at most %d", seconds, LONGEST_GRACE);
        return 2;
    }
    if (is_saved(state, own_run()) || (vm != NULL && save(vm, (int)grace)))
        return 0;
    wait_longer((int)grace + POWER_OFF);
    if (guest_stop(runtime, (int)grace) == 0)
        return 0;
    say("cannot ask the guest to power off: %s", strerror(errno));
    return 1;
}

/* Remove what systemd-machined keeps of this run: see forget_machine in hypemand/unit/exit.py. */
static void forget_machine(const char *unit, const char *runtime)
{
    char link[PATH_MAX];
    char record[PATH_MAX];
    char target[PATH_MAX];
    const char *slash = strrchr(runtime, '/');
    const char *machine = slash == NULL ? runtime : slash + 1;
    (void)snprintf(link, sizeof(link), "%s/run/systemd/machines/unit:%s", root, unit);
    (void)snprintf(record, sizeof(record), "%s/run/systemd/machines/%s", root, machine);
    ssize_t length = readlink(link, target, sizeof(target) - 1);
    if (length < 0)
        return;
    target[length] = '\0';
    /* a container may have the same name */
    if (strcmp(target, machine) != 0)
        return;
    if ((unlink(record) < 0 && errno != ENOENT) || unlink(link) < 0)
        say("systemd-machined still has a record of %s: %s", machine, strerror(errno));
}

static int record(char *argv[])
{
    const char *state = argv[0];
    const char *run = own_run();
    if (is_saved(state, run) && is_recorded(state, run)) {
        forget_machine(argv[1], argv[2]);
        notify("STATUS=Stopped: put into standby");
        return 0;
    }
    (void)execv(argv[3], &argv[3]);
    say("cannot execute %s: %s", argv[3], strerror(errno));
    return 1;
}

int main(int argc, char *argv[])
{
    static const char option[] = "--root=";
    if (argc > 1 && strncmp(argv[1], option, strlen(option)) == 0) {
        root = argv[1] + strlen(option);
        argc--;
        argv++;
    }
    if ((argc == 5 || argc == 6) && strcmp(argv[1], "stop") == 0)
        return stop(argv[2], argv[3], argv[4], argc == 6 ? argv[5] : NULL);
    if (argc >= 6 && strcmp(argv[1], "record") == 0)
        return record(&argv[2]);
    say("usage: ending stop RUNTIME_DIR GRACE_SECONDS STATE_DIR [VM], or record STATE_DIR UNIT RUNTIME_DIR "
        "COMMAND");
    return 2;
}
