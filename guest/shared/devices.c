// SPDX-License-Identifier: Apache-2.0
#include "devices.h"

#include "clock.h"
#include "files.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    ATTRIBUTE_SIZE = 128,
    SERIAL_SIZE = 32,
    DISKS_MAX = 64,
    UEVENT_GROUP_KERNEL = 1,
    /* A port's control messages are worked off after its event; look again this often beside the events. */
    LOOK_AGAIN_MS = 20,
};

/* Find the entry of a /sys folder, among those that begin with the prefix (each look costs time on the path
 * to the program), whose attribute has the value, and give back its name. */
static bool find_by_attribute(const char *folder, const char *prefix, const char *attribute,
                              const char *value, char name[NAME_MAX + 1])
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
        (void)snprintf(name, NAME_MAX + 1, "%s", entry->d_name);
        found = true;
    }
    (void)closedir(entries);
    return found;
}

/* The serials that were read: each time that one is, the kernel asks the device. A disk keeps its own. */
static struct {
    char name[16];
    char serial[SERIAL_SIZE];
} disks[DISKS_MAX];
static size_t disk_count;

static bool is_known(const char *name)
{
    for (size_t i = 0; i < disk_count; i++) {
        if (strcmp(disks[i].name, name) == 0)
            return true;
    }
    return false;
}

/* Read the serials of the disks that are new, up to the one that is looked for. */
static void learn_disks(const char *wanted)
{
    DIR *entries = opendir("/sys/block");
    if (entries == NULL)
        return;
    const struct dirent *entry;
    while (disk_count < DISKS_MAX && (entry = readdir(entries)) != NULL) {
        const char *name = entry->d_name;
        char file[DEVICE_PATH_SIZE];
        if (strncmp(name, "vd", 2) != 0 || strlen(name) >= sizeof disks[0].name || is_known(name))
            continue;
        char *serial = disks[disk_count].serial;
        (void)snprintf(file, sizeof file, "/sys/block/%s/serial", name);
        if (file_read(file, serial, SERIAL_SIZE) <= 0)
            continue;
        serial[strcspn(serial, "\n")] = '\0';
        memcpy(disks[disk_count++].name, name, strlen(name) + 1);
        if (strcmp(serial, wanted) == 0)
            break;
    }
    (void)closedir(entries);
}

static bool find_disk(const char *serial, char path[DEVICE_PATH_SIZE])
{
    for (size_t i = 0; i < disk_count; i++) {
        if (strcmp(disks[i].serial, serial) == 0) {
            (void)snprintf(path, DEVICE_PATH_SIZE, "/dev/%s", disks[i].name);
            return access(path, F_OK) == 0;
        }
    }
    return false;
}

bool find_block(const char *serial, char path[DEVICE_PATH_SIZE])
{
    if (find_disk(serial, path))
        return true;
    learn_disks(serial);
    return find_disk(serial, path);
}

bool find_port(const char *name, char path[DEVICE_PATH_SIZE])
{
    char entry[NAME_MAX + 1];
    if (!find_by_attribute("/sys/class/virtio-ports", "vport", "name", name, entry))
        return false;
    (void)snprintf(path, DEVICE_PATH_SIZE, "/dev/%s", entry);
    return access(path, F_OK) == 0;
}

bool find_interface(const char *mac, char name[DEVICE_PATH_SIZE])
{
    return find_by_attribute("/sys/class/net", "", "address", mac, name);
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
