// SPDX-License-Identifier: Apache-2.0
#include "run.h"

#include <ctype.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* of hypemand/vm/folders.py and hypemand/vm/exitrecord.py */
#define SAVED "standby/snapshot.json"
#define RESTORED "standby.old"
#define ENDED "exit.json"

enum { RUN_LENGTH = 32, BEGINNING = 128 };

/* The first bytes of a regular file. Opening something else, as a FIFO, waits for nobody. */
static bool read_beginning(const char *folder, const char *name, char text[BEGINNING])
{
    char path[PATH_MAX];
    struct stat about;
    int length = snprintf(path, sizeof(path), "%s/%s", folder, name);
    if (length < 0 || (size_t)length >= sizeof(path))
        return false;
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    if (fd < 0)
        return false;
    ssize_t got = fstat(fd, &about) == 0 && S_ISREG(about.st_mode) ? read(fd, text, BEGINNING - 1) : -1;
    (void)close(fd);
    text[got < 0 ? 0 : got] = '\0';
    return got > 0;
}

static bool skip(const char **at, const char *words)
{
    size_t length = strlen(words);
    bool found = strncmp(*at, words, length) == 0;
    *at += found ? length : 0;
    return found;
}

/* Is the record in that file of this run? Records begin with their version, if they have one, and the run
 * (hypemand/recordfile.py). One that begins otherwise is not. */
static bool names_run(const char *folder, const char *name, const char *run)
{
    char text[BEGINNING];
    const char *at = text;
    if (strlen(run) != RUN_LENGTH || !read_beginning(folder, name, text) || !skip(&at, "{"))
        return false;
    if (skip(&at, "\"version\": ")) {
        while (isdigit((unsigned char)*at))
            at++;
        if (!skip(&at, ", "))
            return false;
    }
    return skip(&at, "\"run\": \"") && skip(&at, run) && *at == '"';
}

bool is_saved(const char *state, const char *run)
{
    return names_run(state, SAVED, run);
}

bool is_recorded(const char *state, const char *run)
{
    char path[PATH_MAX];
    int length = snprintf(path, sizeof(path), "%s/" RESTORED, state);
    return length > 0 && (size_t)length < sizeof(path) && access(path, F_OK) != 0 &&
           names_run(state, ENDED, run);
}
