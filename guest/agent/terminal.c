// SPDX-License-Identifier: Apache-2.0
#include "terminal.h"

#include "files.h"
#include "records.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { CONTROL_D = 4, STAT_SIZE = 512 };

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

/* The session of a process by the sixth word of its stat; the second is in parentheses and may be anything.
 */
static unsigned long read_session(const char *pid)
{
    char path[32];
    char text[STAT_SIZE];
    unsigned long session = 0;
    (void)snprintf(path, sizeof path, "/proc/%.10s/stat", pid);
    if (file_read(path, text, sizeof text) <= 0)
        return 0; /* It has just ended. */
    char *at = strrchr(text, ')');
    for (int field = 2; at != NULL && field < 6; field++)
        at = strchr(at + 1, ' ');
    if (at == NULL)
        return 0;
    at[1 + strcspn(at + 1, " ")] = '\0';
    return parse_number(at + 1, INT_MAX, &session) ? session : 0;
}

void session_kill(pid_t leader)
{
    DIR *processes = opendir("/proc");
    if (processes == NULL) {
        (void)kill(-leader, SIGKILL);
        return;
    }
    for (const struct dirent *entry = readdir(processes); entry != NULL; entry = readdir(processes)) {
        unsigned long pid;
        if (parse_number(entry->d_name, INT_MAX, &pid) &&
            read_session(entry->d_name) == (unsigned long)leader)
            (void)kill((pid_t)pid, SIGKILL);
    }
    (void)closedir(processes);
}
