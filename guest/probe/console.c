// SPDX-License-Identifier: Apache-2.0
/* What is written to the console, seen on its way: while a pattern is looked for, /dev/console leads to a
 * pseudoterminal (TIOCCONS), and what comes out of that goes on to the terminal that is the console's. What
 * writes to /dev/console does not notice: it keeps its terminal, and afterwards its bytes take no detour.
 *
 * A line that is written in the very moment in which the detour ends may come out behind the next one. */
#include "kinds.h"

#include "files.h"
#include "pty.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum { BYTES_SIZE = 4096, REST_MS = 500 };

static const char sentinel[] = "HYPEMAN-";

/* The terminal behind /dev/console: the last one that the kernel names. */
static int open_terminal(void)
{
    char names[256];
    char path[sizeof names + sizeof "/dev/"];
    if (file_read("/sys/class/tty/console/active", names, sizeof names) <= 0)
        return -1;
    names[strcspn(names, "\n")] = '\0';
    const char *last = strrchr(names, ' ');
    (void)snprintf(path, sizeof path, "/dev/%s", last == NULL ? names : last + 1);
    return open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC);
}

static void set_raw(int terminal)
{
    struct termios settings;
    if (tcgetattr(terminal, &settings) != 0)
        return;
    settings.c_iflag = 0;
    settings.c_oflag = 0;
    settings.c_lflag = 0;
    (void)tcsetattr(terminal, TCSANOW, &settings);
}

bool console_open(struct probe *probe, struct reason *why)
{
    struct pty pty;
    if (!pattern_compile(&probe->pattern, probe->check->pattern, why))
        return false;
    matcher_start(&probe->matcher, &probe->pattern);
    probe->console = open_terminal();
    if (probe->console < 0)
        return refuse(why, "cannot open the console's terminal: %s", strerror(errno));
    if (!pty_open(&pty, 0, why))
        return false;
    set_raw(pty.process);
    bool redirected =
        ioctl(pty.process, TIOCCONS) == 0 || refuse(why, "cannot redirect the console: %s", strerror(errno));
    close_fd(&pty.process); /* The kernel holds it until console_restore. */
    probe->fd = pty.master;
    probe->events = POLLIN;
    return redirected;
}

void console_restore(int console)
{
    (void)ioctl(console, TIOCCONS);
}

/* The terminal may be hung up, as systemd does; then it is opened anew. */
static void pass_on(struct probe *probe, const char *bytes, size_t size)
{
    bool again = false;
    while (size > 0) {
        ssize_t written = write(probe->console, bytes, size);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0) {
            if (again)
                return; /* Nobody to tell it to. */
            again = true;
            close_fd(&probe->console);
            probe->console = open_terminal();
            continue;
        }
        bytes += written;
        size -= (size_t)written;
    }
}

static void feed(struct probe *probe, char byte)
{
    (void)matcher_feed(&probe->matcher, (uint8_t)byte);
}

bool console_feed(struct probe *probe, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size && !probe->matcher.matched; i++) {
        char byte = bytes[i];
        bool begun = probe->prefix < sizeof sentinel - 1;
        if (!probe->skipping && begun && byte == sentinel[probe->prefix]) {
            probe->skipping = ++probe->prefix == sizeof sentinel - 1;
            continue;
        }
        if (!probe->skipping && begun) {
            for (size_t held = 0; held < probe->prefix; held++)
                feed(probe, sentinel[held]);
            probe->prefix = sizeof sentinel; /* No sentinel in what follows of this line. */
        }
        if (!probe->skipping)
            feed(probe, byte);
        if (byte == '\n') {
            probe->skipping = false;
            probe->prefix = 0;
        }
    }
    return probe->matcher.matched;
}

enum probe_state console_step(struct probe *probe, bool ready)
{
    char bytes[BYTES_SIZE];
    if (!ready)
        return PROBE_PENDING;
    ssize_t got = read(probe->fd, bytes, sizeof bytes);
    if (got < 0 && (errno == EINTR || errno == EAGAIN))
        return PROBE_PENDING;
    if (got <= 0)
        return PROBE_FAILED; /* The console is not redirected any more. */
    pass_on(probe, bytes, (size_t)got);
    return console_feed(probe, bytes, (size_t)got) ? PROBE_PASSED : PROBE_PENDING;
}

/* All that is there. True: nothing more can come. */
static bool pass_on_rest(struct probe *probe)
{
    char bytes[BYTES_SIZE];
    for (;;) {
        ssize_t got = read(probe->fd, bytes, sizeof bytes);
        if (got > 0)
            pass_on(probe, bytes, (size_t)got);
        else if (got == 0 || errno != EINTR)
            return got == 0 || errno != EAGAIN;
    }
}

void console_close(struct probe *probe)
{
    int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    struct pollfd rest = {.fd = probe->fd, .events = POLLIN};
    (void)pass_on_rest(probe);
    console_restore(console);
    while (!pass_on_rest(probe) && poll(&rest, 1, REST_MS) > 0)
        continue;
    close_fd(&console);
    close_fd(&probe->console);
}
