// SPDX-License-Identifier: Apache-2.0
#include "filesystem.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h> /* Not beside <sys/mount.h>: some C libraries have the same names there. */
#include <stddef.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OPTION_MAX = 256 };

static bool configure(int context, const char *type, const char *device, bool readonly)
{
    /* By discard the host has back what is removed. */
    const char *flag = readonly ? "ro" : strcmp(type, "ext4") == 0 ? "discard" : NULL;
    return syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "source", device, 0) == 0 &&
           (flag == NULL || syscall(SYS_fsconfig, context, FSCONFIG_SET_FLAG, flag, NULL, 0) == 0) &&
           syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0;
}

int filesystem_mount(const char *type, const char *device, bool readonly)
{
    int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    int filesystem = -1;
    if (configure(context, type, device, readonly))
        filesystem =
            (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, readonly ? (unsigned)MOUNT_ATTR_RDONLY : 0U);
    int error = errno;
    close_fd(&context);
    errno = error;
    return filesystem;
}

static bool set_text(int context, const char *key, const char *value)
{
    return syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, key, value, 0) == 0;
}

static bool set_options(int context, const char *options)
{
    char pair[OPTION_MAX];
    while (*options != '\0') {
        size_t length = strcspn(options, ",");
        size_t key = strcspn(options, "=,");
        if (key == length || length >= sizeof pair) {
            errno = EINVAL;
            return false;
        }
        memcpy(pair, options, length);
        pair[key] = '\0';
        pair[length] = '\0';
        if (!set_text(context, pair, pair + key + 1))
            return false;
        options += length + (options[length] == ',');
    }
    return true;
}

static unsigned find_attributes(struct mount_limits limits)
{
    return (limits.nosuid ? MOUNT_ATTR_NOSUID : 0U) | (limits.nodev ? MOUNT_ATTR_NODEV : 0U) |
           (limits.noexec ? MOUNT_ATTR_NOEXEC : 0U) | (limits.readonly ? MOUNT_ATTR_RDONLY : 0U);
}

int filesystem_nodev(const char *type, const char *options, struct mount_limits limits)
{
    int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    int filesystem = -1;
    if (set_text(context, "source", type) && set_options(context, options) &&
        syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        filesystem = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, find_attributes(limits));
    int error = errno;
    close_fd(&context);
    errno = error;
    return filesystem;
}

int filesystem_overlay(const char *lower, const char *upper, const char *work)
{
    int context = (int)syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    int filesystem = -1;
    if (set_text(context, "lowerdir", lower) && set_text(context, "upperdir", upper) &&
        set_text(context, "workdir", work) &&
        syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        filesystem = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0U);
    int error = errno;
    close_fd(&context);
    errno = error;
    return filesystem;
}

bool filesystem_place(int filesystem, int folder)
{
    const unsigned flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    return syscall(SYS_move_mount, filesystem, "", folder, "", flags) == 0;
}

bool filesystem_move(int filesystem, const char *path)
{
    const unsigned flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS;
    return syscall(SYS_move_mount, filesystem, "", AT_FDCWD, path, flags) == 0;
}
