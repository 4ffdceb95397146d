// SPDX-License-Identifier: Apache-2.0
#include "ownproc.h"

#include <fcntl.h>

int own_proc(void)
{
    static int proc = -1;
    if (proc < 0)
        proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return proc;
}
