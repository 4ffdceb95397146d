// SPDX-License-Identifier: Apache-2.0
#include "system.h"

#include "files.h"
#include "inroot.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_MAX_LENGTH = 63, HOSTS_SIZE_MAX = 1 << 20 };

/* Image builders leave these out, or empty. What has content is the image's own business. */
static bool write_if_empty(const char *path, const char *text, struct reason *why)
{
    struct stat status;
    if (stat(path, &status) == 0 && status.st_size > 0)
        return true;
    if (!folder_make("/etc", 0755) || !file_write(path, O_CREAT, text))
        return refuse(why, "cannot write %s: %s", path, strerror(errno));
    return true;
}

static void loopback_up(void)
{
    int control = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (control < 0)
        return; /* A kernel without IPv4 has no 127.0.0.1 to bring up. */
    struct ifreq request = {.ifr_name = "lo"};
    if (ioctl(control, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags = (short)(request.ifr_flags | IFF_UP);
        (void)ioctl(control, SIOCSIFFLAGS, &request);
    }
    close_fd(&control);
}

static void warn(const char *what, int error)
{
    char line[256];
    (void)snprintf(line, sizeof line, "<4>hypeman-init: warning: /etc/hosts %s: %s\n", what, strerror(error));
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

/* An image that has its own /etc/hosts knows neither the VM's name nor other VMs; it may be one that cannot
 * be written to. */
static bool set_hosts(const char *name, const struct hosts *hosts, struct reason *why)
{
    char *old = file_load("/etc/hosts", HOSTS_SIZE_MAX);
    if (old == NULL && errno != ENOENT) {
        warn("is left as it is", errno); /* It is the image's own business. */
        return true;
    }
    char *text = hosts_derive(old == NULL ? "" : old, name, hosts);
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

bool system_name(const char *name, const struct hosts *hosts, struct reason *why)
{
    char hostname[NAME_MAX_LENGTH + 2];
    size_t length = strlen(name);
    if (length == 0 || length > NAME_MAX_LENGTH || sethostname(name, length) != 0)
        return refuse(why, "cannot set the host name \"%s\"", name);
    (void)snprintf(hostname, sizeof hostname, "%s\n", name);
    loopback_up();
    return write_if_empty("/etc/hostname", hostname, why) && set_hosts(name, hosts, why);
}

void system_open(void)
{
    static const struct {
        const char *path;
        const char *value;
    } settings[] = {
        {"/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"},
        {"/proc/sys/net/ipv4/ping_group_range", "0 2147483647"},
        {"/proc/sys/vm/max_map_count", "1048576"},
        {"/proc/sys/fs/inotify/max_user_watches", "65536"},
    };
    /* A kernel without IPv4 has neither. */
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++)
        (void)file_write(settings[i].path, 0, settings[i].value);
}

void system_protect(void)
{
    (void)file_write("/proc/self/oom_score_adj", 0, "-1000");
}
