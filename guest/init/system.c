// SPDX-License-Identifier: Apache-2.0
#include "system.h"

#include "files.h"
#include "hostsfile.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_MAX_LENGTH = 63 };

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

void system_loopback(void)
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

bool system_name(const char *name, const struct hosts *hosts, struct reason *why)
{
    char hostname[NAME_MAX_LENGTH + 2];
    size_t length = strlen(name);
    if (length == 0 || length > NAME_MAX_LENGTH || sethostname(name, length) != 0)
        return refuse(why, "cannot set the host name \"%s\"", name);
    (void)snprintf(hostname, sizeof hostname, "%s\n", name);
    return write_if_empty("/etc/hostname", hostname, why) && hosts_set(name, NULL, hosts, why);
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
