/* SPDX-License-Identifier: Apache-2.0 */
/* The kernel's log: where init's diagnostics go, and where the kernel says whom it killed for memory. */
#ifndef HYPEMAN_KERNELLOG_H
#define HYPEMAN_KERNELLOG_H

#include <stdbool.h>
#include <sys/types.h>

/* An fd that reads what the kernel logs from now on, or -1. */
int kernel_log_open(void);

/* The pid in a record of /dev/kmsg by which the kernel reports a kill for memory; 0 for any other record. */
pid_t kernel_log_oom_victim(const char *record);

struct oom_kills {
    bool any;
    bool victim; /* the asked-for pid is among them */
};

/* Read on to the end of the log. */
struct oom_kills kernel_log_oom_kills(int log, pid_t pid);

#endif
