// SPDX-License-Identifier: Apache-2.0
#include "hostsfile.h"

#include "files.h"
#include "inroot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { HOSTS_SIZE_MAX = 1 << 20 };

static void warn(const char *what, int error)
{
    char line[256];
    (void)snprintf(line, sizeof line, "<4>hypeman: warning: /etc/hosts %s: %s\n", what, strerror(error));
    (void)file_write("/dev/kmsg", 0, line);
}

/* In place of the file that is there, whole or not at all; where it is a link, of what that points to. */
static bool replace_hosts(const char *text)
{
    char path[PATH_MAX];
    if (realpath("/etc/hosts", path) == NULL)
        (void)snprintf(path, sizeof path, "/etc/hosts");
    char *name = strrchr(path, '/') + 1;
    name[-1] = '\0';
    int folder = open(*path == '\0' ? "/" : path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool written = folder >= 0 && file_replace(folder, name, text);
    int error = errno;
    close_fd(&folder);
    errno = error;
    return written;
}

bool hosts_set(const char *name, const char *former, const struct hosts *hosts, struct reason *why)
{
    char *old = file_load("/etc/hosts", HOSTS_SIZE_MAX);
    if (old == NULL && errno != ENOENT) {
        warn("is left as it is", errno); /* It is the image's own business. */
        return true;
    }
    char *text = hosts_derive(old == NULL ? "" : old, name, former, hosts);
    bool empty = old == NULL || *old == '\0';
    bool done = text != NULL && ((old != NULL && strcmp(text, old) == 0) || replace_hosts(text));
    int error = errno;
    free(old);
    free(text);
    if (!done && empty)
        return refuse(why, "cannot write /etc/hosts: %s", strerror(error));
    if (!done)
        warn("does not get the VM's names", error);
    return true;
}
