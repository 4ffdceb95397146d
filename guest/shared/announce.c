// SPDX-License-Identifier: Apache-2.0
#include "announce.h"

#include "clock.h"
#include "devices.h"
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

enum { BUSY_MS = 2000, LOOK_AGAIN_MS = 20 };

static void say_to(const char *path, int flags, const char *line, size_t size)
{
    int64_t deadline = clock_ms() + BUSY_MS;
    int fd;
    /* No event tells when another process has closed it. */
    while ((fd = open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC | flags)) < 0 && errno == EBUSY &&
           clock_ms() < deadline)
        (void)poll(NULL, 0, LOOK_AGAIN_MS);
    if (fd >= 0)
        (void)!write(fd, line, size);
    close_fd(&fd);
}

void announce(const char *line, size_t size)
{
    char port[DEVICE_PATH_SIZE];
    say_to("/dev/console", 0, line, size);
    if (find_port("org.hypeman.report", port))
        say_to(port, O_NONBLOCK, line, size); /* A host that does not listen misses it. */
}
