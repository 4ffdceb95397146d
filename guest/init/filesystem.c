// SPDX-License-Identifier: Apache-2.0
#include "filesystem.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/mount.h> /* Not beside <sys/mount.h>: some C libraries have the same names there. */
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool configure(int context, const char *device, bool readonly)
{
    return syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, "source", device, 0) == 0 &&
           (!readonly || syscall(SYS_fsconfig, context, FSCONFIG_SET_FLAG, "ro", NULL, 0) == 0) &&
           syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0;
}

int filesystem_mount(const char *type, const char *device, bool readonly)
{
    int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    int filesystem = -1;
    if (configure(context, device, readonly))
        filesystem =
            (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, readonly ? (unsigned)MOUNT_ATTR_RDONLY : 0U);
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
