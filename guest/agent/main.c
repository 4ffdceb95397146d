// SPDX-License-Identifier: Apache-2.0
/* hypeman-agent: serves the agent channel of docs/protocol.md on its virtio port. */
#include "bootid.h"
#include "clock.h"
#include "devices.h"
#include "files.h"
#include "records.h"
#include "serve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A little less than init waits for the byte, so that it learns why there is none. */
enum { PORT_WAIT_MS = DEVICE_WAIT_MS - 1000 };

static bool open_port(int *port, struct reason *why)
{
    char path[DEVICE_PATH_SIZE];
    if (!wait_for_device(find_port, "org.hypeman.agent", path, clock_ms() + PORT_WAIT_MS))
        return refuse(why, "no virtio port with the name org.hypeman.agent came up");
    *port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    return *port >= 0 || refuse(why, "cannot open %s: %s", path, strerror(errno));
}

/* One byte into the pipe of whoever waits for this agent to serve. */
static void tell_ready(void)
{
    unsigned long number;
    const char *text = getenv("HYPEMAN_AGENT_READY_FD");
    if (text == NULL || !parse_number(text, 1023, &number))
        return;
    int fd = (int)number;
    (void)!write(fd, "", 1); /* Nobody waits: no harm. */
    close_fd(&fd);
}

int main(void)
{
    struct reason why = {""};
    char boot[BOOT_ID_LENGTH + 1];
    struct server server = {.port = -1, .boot = boot, .init = 1, .ready = tell_ready};
    (void)file_write("/proc/self/oom_score_adj", 0, "-1000");
    bool served = (boot_id_read(boot) || refuse(&why, "the kernel command line has no hypeman.boot=")) &&
                  open_port(&server.port, &why) && serve(&server, &why);
    if (!served)
        (void)dprintf(STDERR_FILENO, "hypeman-agent: %s\n", why.words);
    return served ? EXIT_SUCCESS : EXIT_FAILURE;
}
