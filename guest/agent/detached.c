// SPDX-License-Identifier: Apache-2.0
#include "detached.h"

#include "files.h"

#include <errno.h>
#include <linux/mount.h> /* Not beside <sys/mount.h>: some C libraries have the same names there. */
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

int mount_detached(const char *type)
{
    int context = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC);
    if (context < 0)
        return -1;
    int mounted = -1;
    if (syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
        mounted = (int)syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, 0U);
    int error = errno;
    close_fd(&context);
    errno = error;
    return mounted;
}
