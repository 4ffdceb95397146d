// SPDX-License-Identifier: Apache-2.0
#include "devices.h"

#include "clock.h"
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    ATTRIBUTE_SIZE = 128,
    UEVENT_GROUP_KERNEL = 1,
    /* A port's control messages are worked off after its event; look again this often beside the events. */
    LOOK_AGAIN_MS = 20,
};

/* Find the entry of a /sys folder, among those that begin with the prefix (each look costs time on the path
 * to the program), whose attribute has the value, and give back the node /dev/ENTRY. */
static bool find_by_attribute(const char *folder, const char *prefix, const char *attribute,
                              const char *value, char path[DEVICE_PATH_SIZE])
{
    DIR *entries = opendir(folder);
    if (entries == NULL)
        return false;
    bool found = false;
    const struct dirent *entry;
    while (!found && (entry = readdir(entries)) != NULL) {
        if (strncmp(entry->d_name, prefix, strlen(prefix)) != 0)
            continue;
        char file[2 * DEVICE_PATH_SIZE];
        char text[ATTRIBUTE_SIZE];
        (void)snprintf(file, sizeof file, "%s/%s/%s", folder, entry->d_name, attribute);
        if (file_read(file, text, sizeof text) < 0)
            continue;
        text[strcspn(text, "\n")] = '\0';
        if (strcmp(text, value) != 0)
            continue;
        (void)snprintf(path, DEVICE_PATH_SIZE, "/dev/%s", entry->d_name);
        found = access(path, F_OK) == 0;
    }
    (void)closedir(entries);
    return found;
}

bool find_block(const char *serial, char path[DEVICE_PATH_SIZE])
{
    return find_by_attribute("/sys/block", "vd", "serial", serial, path);
}

bool find_port(const char *name, char path[DEVICE_PATH_SIZE])
{
    return find_by_attribute("/sys/class/virtio-ports", "vport", "name", name, path);
}

int device_events_open(void)
{
    int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (events < 0)
        return -1;
    struct sockaddr_nl address = {.nl_family = AF_NETLINK, .nl_groups = UEVENT_GROUP_KERNEL};
    if (bind(events, (const struct sockaddr *)&address, sizeof address) != 0) {
        int error = errno;
        close_fd(&events);
        errno = error;
    }
    return events;
}

void device_events_drain(int events)
{
    char event[2048];
    /* ENOBUFS (some were lost) is as good a reason to look again as an event. */
    while (recv(events, event, sizeof event, MSG_DONTWAIT) >= 0 || errno == EINTR || errno == ENOBUFS)
        ;
}

bool wait_for_device(find_device *find, const char *name, char path[DEVICE_PATH_SIZE], int64_t deadline)
{
    if (find(name, path))
        return true;
    int events = device_events_open();
    bool found = false;
    /* The events are subscribed to before looking: what comes in between is not missed. */
    while (!(found = find(name, path))) {
        int left = deadline_timeout(deadline);
        if (left == 0)
            break;
        struct pollfd poll_for = {.fd = events, .events = POLLIN};
        if (poll(&poll_for, 1, left < LOOK_AGAIN_MS ? left : LOOK_AGAIN_MS) > 0)
            device_events_drain(events);
    }
    close_fd(&events);
    return found;
}
