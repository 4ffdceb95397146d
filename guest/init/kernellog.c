// SPDX-License-Identifier: Apache-2.0
#include "kernellog.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORD_SIZE = 8192, FACILITY_SHIFT = 3 };

int kernel_log_open(void)
{
    int log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (log >= 0)
        (void)lseek(log, 0, SEEK_END);
    return log;
}

/* "PRIORITY,SEQUENCE,TIME,…;TEXT". User space may write there too, but not as facility 0. */
pid_t kernel_log_oom_victim(const char *record)
{
    static const char words[] = "Killed process ";
    char *end;
    long priority = strtol(record, &end, 10);
    const char *text = strchr(record, ';');
    if (end == record || priority < 0 || priority >> FACILITY_SHIFT != 0 || text == NULL)
        return 0;
    const char *kill = strstr(text, words);
    if (kill == NULL || strstr(text, "ut of memory") == NULL)
        return 0;
    long pid = strtol(kill + sizeof words - 1, &end, 10);
    return pid > 0 && pid <= INT_MAX ? (pid_t)pid : 0;
}

struct oom_kills kernel_log_oom_kills(int log, pid_t pid)
{
    struct oom_kills kills = {false, false};
    char record[RECORD_SIZE];
    for (;;) {
        ssize_t got = read(log, record, sizeof record - 1);
        if (got < 0 && (errno == EINTR || errno == EPIPE))
            continue; /* EPIPE: older records were overwritten; the next read goes on behind them. */
        if (got <= 0)
            return kills;
        record[got] = '\0';
        pid_t victim = kernel_log_oom_victim(record);
        kills.any = kills.any || victim != 0;
        kills.victim = kills.victim || (victim != 0 && victim == pid);
    }
}
