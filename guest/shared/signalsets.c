// SPDX-License-Identifier: Apache-2.0
#include "signalsets.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

static uint64_t find_set(const char *status, const char *field)
{
    const char *found = strstr(status, field);
    return found == NULL ? 0 : strtoull(found + strlen(field), NULL, 16);
}

struct signal_sets signal_sets_parse(const char *status)
{
    return (struct signal_sets){.blocked = find_set(status, "\nSigBlk:"),
                                .ignored = find_set(status, "\nSigIgn:"),
                                .caught = find_set(status, "\nSigCgt:")};
}

bool signal_in(uint64_t set, int number)
{
    return (set >> (number - 1) & 1) != 0;
}

bool signal_ends(int number)
{
    static const int others[] = {SIGCHLD, SIGCONT, SIGURG, SIGWINCH, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (number == others[i])
            return false;
    }
    return true;
}
