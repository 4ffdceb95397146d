// SPDX-License-Identifier: Apache-2.0
#include "terminal.h"

#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { CONTROL_D = 4 };

bool terminal_open(struct terminal *terminal, uid_t owner, struct reason *why)
{
    int locked = 0;
    terminal->process = -1;
    terminal->master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (terminal->master < 0)
        return refuse(why, "cannot open /dev/ptmx: %s", strerror(errno));
    /* By the master, not by a name: whatever is mounted on /dev/pts. */
    if (ioctl(terminal->master, TIOCSPTLCK, &locked) == 0)
        terminal->process = ioctl(terminal->master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (terminal->process >= 0 && fchown(terminal->process, owner, (gid_t)-1) == 0)
        return true;
    int error = errno;
    close_fd(&terminal->process);
    close_fd(&terminal->master);
    return refuse(why, "cannot make a terminal: %s", strerror(error));
}

void terminal_resize(int master, uint16_t rows, uint16_t columns)
{
    struct winsize size = {.ws_row = rows, .ws_col = columns};
    (void)ioctl(master, TIOCSWINSZ, &size);
}

size_t terminal_end(int master, bool line_begun, uint8_t typed[2])
{
    struct termios settings;
    uint8_t end = tcgetattr(master, &settings) == 0 ? (uint8_t)settings.c_cc[VEOF] : CONTROL_D;
    typed[0] = end;
    typed[1] = end;
    return line_begun ? 2 : 1; /* The first one sends off what the line has. */
}
