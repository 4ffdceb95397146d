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
