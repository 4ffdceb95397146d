// SPDX-License-Identifier: Apache-2.0
#include "programio.h"

#include "files.h"
#include "pty.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static int copy_of(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

/* A pipe of which the agent's end does not block, as the program's does. */
static bool make_pipe(int *read_end, int *write_end, bool agent_writes, uid_t owner)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0)
        return false;
    *read_end = ends[0];
    *write_end = ends[1];
    return fcntl(ends[agent_writes ? 1 : 0], F_SETFL, O_NONBLOCK) == 0 &&
           fchown(ends[0], owner, (gid_t)-1) == 0;
}

static bool open_pipes(struct program_io *io, uid_t owner, struct reason *why)
{
    return (make_pipe(&io->stdio[0], &io->ends.input, true, owner) &&
            make_pipe(&io->ends.output, &io->stdio[1], false, owner) &&
            make_pipe(&io->ends.error, &io->stdio[2], false, owner)) ||
           refuse(why, "cannot make pipes for the program: %s", strerror(errno));
}

static bool open_terminal(struct program_io *io, bool input, uid_t owner, struct reason *why)
{
    static const struct winsize usual = {.ws_row = 24, .ws_col = 80};
    struct pty terminal;
    if (!pty_open(&terminal, owner, why))
        return false;
    (void)ioctl(terminal.master, TIOCSWINSZ, &usual); /* Until somebody is attached. */
    io->ends.output = terminal.master;
    io->ends.terminal = terminal.process;
    if (input)
        io->ends.input = copy_of(terminal.master);
    for (int i = 0; i < 3; i++)
        io->stdio[i] = copy_of(terminal.process);
    return (io->stdio[2] >= 0 && (!input || io->ends.input >= 0)) ||
           refuse(why, "cannot make a terminal for the program: %s", strerror(errno));
}

bool program_io_open(struct program_io *io, const struct config *config, const struct identity *who,
                     int console, struct reason *why)
{
    *io = PROGRAM_IO_NONE;
    if (!config->input && !config->terminal) {
        io->stdio[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
        io->stdio[1] = copy_of(console);
        io->stdio[2] = copy_of(console);
        /* A program that is not root may open /dev/stdout again, as many images' log files do. */
        (void)fchown(console, who->uid, (gid_t)-1);
        return (io->stdio[0] >= 0 && io->stdio[2] >= 0) ||
               refuse(why, "cannot open /dev/null: %s", strerror(errno));
    }
    io->ends.console = copy_of(console);
    if (io->ends.console < 0)
        return refuse(why, "cannot keep the console: %s", strerror(errno));
    return config->terminal ? open_terminal(io, config->input, who->uid, why) : open_pipes(io, who->uid, why);
}

void program_io_forked(struct program_io *io)
{
    for (int i = 0; i < 3; i++)
        close_fd(&io->stdio[i]);
}

void program_io_close(struct program_io *io)
{
    program_io_forked(io);
    program_ends_close(&io->ends);
}
