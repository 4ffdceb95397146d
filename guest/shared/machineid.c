// SPDX-License-Identifier: Apache-2.0
#include "machineid.h"

#include "files.h"
#include "inroot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYSTEMD_ID "etc/machine-id"
#define DBUS_ID "var/lib/dbus/machine-id"
#define DBUS_NEW "var/lib/dbus/.machine-id.hypeman"

bool machine_id_valid(const char *text)
{
    return strlen(text) == MACHINE_ID_LENGTH && strspn(text, "0123456789abcdef") == MACHINE_ID_LENGTH &&
           strspn(text, "0") < MACHINE_ID_LENGTH;
}

/* The id in a file, which may be anything; false if there is none. */
static bool read_id(int folder, const char *path, char id[MACHINE_ID_LENGTH + 1])
{
    int fd = openat(folder, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, id, MACHINE_ID_LENGTH);
    close_fd(&fd);
    id[got < 0 ? 0 : got] = '\0';
    return machine_id_valid(id);
}

bool machine_id_is_own(int upper, int image)
{
    char own[MACHINE_ID_LENGTH + 1];
    char shared[MACHINE_ID_LENGTH + 1];
    return read_id(upper, SYSTEMD_ID, own) &&
           !(read_id(image, SYSTEMD_ID, shared) && strcmp(own, shared) == 0) &&
           !(read_id(image, DBUS_ID, shared) && strcmp(own, shared) == 0);
}

bool machine_id_is(int upper, const char *id)
{
    char found[MACHINE_ID_LENGTH + 1];
    return read_id(upper, SYSTEMD_ID, found) && strcmp(found, id) == 0;
}

bool machine_id_share(int root, int upper)
{
    struct stat status;
    if (fstatat(upper, DBUS_ID, &status, AT_SYMLINK_NOFOLLOW) == 0 ||
        fstatat(root, DBUS_ID, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode))
        return true;
    if (unlinkat(root, DBUS_NEW, 0) != 0 && errno != ENOENT)
        return false;
    return symlinkat("/" SYSTEMD_ID, root, DBUS_NEW) == 0 && renameat(root, DBUS_NEW, root, DBUS_ID) == 0;
}

/* Where /etc cannot be written to as it boots, systemd mounts a file of /run there. */
static bool write_id(int etc, const char *text)
{
    return file_replace(etc, "machine-id", text) ||
           (errno == EBUSY && file_write("/run/machine-id", O_TRUNC, text));
}

/* D-Bus may have a file of its own, which is to say the same. */
static bool write_dbus_id(const char *text)
{
    char id[MACHINE_ID_LENGTH + 1];
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    bool done = !read_id(root, DBUS_ID, id) || file_write("/" DBUS_ID, O_TRUNC | O_NOFOLLOW, text);
    close_fd(&root);
    return done;
}

bool machine_id_set(const char *id, struct reason *why)
{
    char text[MACHINE_ID_LENGTH + 2];
    (void)snprintf(text, sizeof text, "%s\n", id);
    int etc = folder_make("/etc", 0755) ? open("/etc", O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    bool written = etc >= 0 && write_id(etc, text) && write_dbus_id(text);
    if (!written)
        (void)refuse(why, "cannot write the machine id: %s", strerror(errno));
    close_fd(&etc);
    return written;
}
