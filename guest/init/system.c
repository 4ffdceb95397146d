// SPDX-License-Identifier: Apache-2.0
#include "system.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NAME_MAX_LENGTH = 63, HOSTS_MAX = 1 << 20 };

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

/* Does a line of the text, comments aside, have this name? */
static bool hosts_name(const char *text, const char *name)
{
    while (*text != '\0') {
        const char *end = text + strcspn(text, "\n#");
        while (text < end) {
            size_t length = strcspn(text, " \t\r\n#");
            if (length == strlen(name) && strncasecmp(text, name, length) == 0)
                return true;
            text += length;
            text += strspn(text, " \t\r");
        }
        text = end + strcspn(end, "\n");
        text += *text == '\n' ? 1 : 0;
    }
    return false;
}

/* An image that has its own /etc/hosts does not know the VM's name; it may be one that cannot be written to.
 */
static void add_to_hosts(const char *name)
{
    char line[2 * NAME_MAX_LENGTH];
    char *text = file_load("/etc/hosts", HOSTS_MAX);
    if (text == NULL)
        return; /* Too large to look into, or no file: the image's own business. */
    size_t length = strlen(text);
    bool broken = length > 0 && text[length - 1] != '\n';
    bool known = hosts_name(text, name);
    free(text);
    (void)snprintf(line, sizeof line, "%s127.0.1.1\t%s\n", broken ? "\n" : "", name);
    if (!known && !file_write("/etc/hosts", O_APPEND, line))
        (void)file_write("/dev/kmsg", 0,
                         "<4>hypeman-init: warning: cannot add the VM's name to /etc/hosts\n");
}

bool system_name(const char *name, struct reason *why)
{
    char hostname[NAME_MAX_LENGTH + 2];
    char hosts[4 * NAME_MAX_LENGTH];
    size_t length = strlen(name);
    if (length == 0 || length > NAME_MAX_LENGTH || sethostname(name, length) != 0)
        return refuse(why, "cannot set the host name \"%s\"", name);
    (void)snprintf(hostname, sizeof hostname, "%s\n", name);
    (void)snprintf(hosts, sizeof hosts, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost\n", name);
    loopback_up();
    if (!write_if_empty("/etc/hostname", hostname, why) || !write_if_empty("/etc/hosts", hosts, why))
        return false;
    add_to_hosts(name);
    return true;
}

void system_protect(void)
{
    (void)file_write("/proc/self/oom_score_adj", 0, "-1000");
}
