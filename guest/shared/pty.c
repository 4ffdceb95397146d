// SPDX-License-Identifier: Apache-2.0
#include "pty.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool pty_open(struct pty *pty, uid_t owner, struct reason *why)
{
    int locked = 0;
    pty->process = -1;
    pty->master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (pty->master < 0)
        return refuse(why, "cannot open /dev/ptmx: %s", strerror(errno));
    /* By the master, not by a name: whatever is mounted on /dev/pts. */
    if (ioctl(pty->master, TIOCSPTLCK, &locked) == 0)
        pty->process = ioctl(pty->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (pty->process >= 0 && fchown(pty->process, owner, (gid_t)-1) == 0)
        return true;
    int error = errno;
    close_fd(&pty->process);
    close_fd(&pty->master);
    return refuse(why, "cannot make a terminal: %s", strerror(error));
}
