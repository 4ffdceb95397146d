// SPDX-License-Identifier: Apache-2.0
/* hypeman-agent: serves the agent channel of docs/protocol.md on its virtio port. */
#include "admission.h"
#include "announce.h"
#include "bootid.h"
#include "clock.h"
#include "devices.h"
#include "files.h"
#include "freezer.h"
#include "groups.h"
#include "inside.h"
#include "records.h"
#include "sentinel.h"
#include "serve.h"
#include "standby.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { OWN_FILES = 1024 };

static bool await_port(char path[DEVICE_PATH_SIZE], struct reason *why)
{
    return wait_for_device(find_port, "org.hypeman.agent", path, clock_ms() + DEVICE_WAIT_MS) ||
           refuse(why, "no virtio port with the name org.hypeman.agent came up");
}

static bool open_port(const char *path, int *port, struct reason *why)
{
    *port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    return *port >= 0 || refuse(why, "cannot open %s: %s", path, strerror(errno));
}

static char boot[BOOT_ID_LENGTH + 1];

/* sd_notify(3) */
static void tell_systemd(const char *path)
{
    static const char ready[] = "READY=1";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length >= sizeof address.sun_path)
        return;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@')
        address.sun_path[0] = '\0';
    int sender = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    (void)!sendto(sender, ready, sizeof ready - 1, MSG_NOSIGNAL, (const struct sockaddr *)&address,
                  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
    close_fd(&sender);
}

/* As a unit of systemd: there is no PID 1 of ours that would say it to the host. */
static void tell_all(const char *notify_socket)
{
    char line[SENTINEL_LINE_MAX] = "";
    announce(line, sentinel_agent_ready(line, clock_realtime(), boot));
    tell_systemd(notify_socket);
}

/* The socket of init, which waits for this agent to serve, and says there of the program; or -1. */
static int find_gate(void)
{
    unsigned long number;
    const char *text = getenv("HYPEMAN_AGENT_READY_FD");
    return text != NULL && parse_number(text, 1023, &number) ? (int)number : -1;
}

static void tell_ready(void)
{
    static const char ready = AGENT_READY;
    const char *notify_socket = getenv("NOTIFY_SOCKET");
    if (notify_socket != NULL)
        tell_all(notify_socket);
    int gate = find_gate();
    if (gate < 0)
        return;
    (void)!write(gate, &ready, sizeof ready); /* Nobody waits: no harm. */
    (void)fcntl(gate, F_SETFD, FD_CLOEXEC);
    inside_expect(gate);
}

/* Who powers off: PID 1, or in systemd mode the process that init has left for that. */
static pid_t find_init(void)
{
    unsigned long number;
    const char *text = getenv("HYPEMAN_POWER_OFF_PID");
    return text != NULL && parse_number(text, INT_MAX, &number) ? (pid_t)number : 1;
}

/* Its own descriptors do not hang on what an image's systemd lets its services open. */
static void keep_files(void)
{
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0 || files.rlim_cur >= OWN_FILES)
        return;
    files.rlim_cur = OWN_FILES;
    if (files.rlim_max < OWN_FILES)
        files.rlim_max = OWN_FILES;
    (void)setrlimit(RLIMIT_NOFILE, &files);
}

int main(void)
{
    struct reason why = {""};
    /* In exec mode there is one agent, from the boot on. */
    bool anew = getenv("NOTIFY_SOCKET") != NULL;
    struct server server = {.port = -1,
                            .boot = boot,
                            .init = find_init(),
                            .ready = tell_ready,
                            .set_clock = clock_set,
                            .frozen = anew && freezer_is_frozen(),
                            .freeze = standby_freeze,
                            .thaw = standby_thaw,
                            .thawed = freezer_tidy};
    (void)file_write("/proc/self/oom_score_adj", 0, "-1000");
    keep_files();
    groups_begin("hypeman-exec");
    char path[DEVICE_PATH_SIZE];
    int gate = find_gate();
    /* Up to its admission it may be part of a template: nothing of a VM is known to it. */
    bool served = await_port(path, &why) && (gate < 0 || admission_await(gate, &why)) &&
                  ((anew ? boot_id_current(boot) : boot_id_read(boot)) ||
                   refuse(&why, "the kernel command line has no hypeman.boot=")) &&
                  open_port(path, &server.port, &why) && serve(&server, &why);
    if (!served)
        (void)dprintf(STDERR_FILENO, "hypeman-agent: %s\n", why.words);
    return served ? EXIT_SUCCESS : EXIT_FAILURE;
}
