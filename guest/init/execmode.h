/* SPDX-License-Identifier: Apache-2.0 */
/* Exec mode: the agent's gate, the program, its end. */
#ifndef HYPEMAN_EXECMODE_H
#define HYPEMAN_EXECMODE_H

#include "agentprocess.h"
#include "config.h"
#include "ports.h"
#include "report.h"

#include <signal.h>

enum { DEFAULT_GRACE_S = 10 };

/* How the boot ended: what the exit report says. */
struct outcome {
    int code;
    struct reason why;
};

struct exec_mode {
    const struct config *config;
    struct report *report;
    struct ports *ports;
    struct agent_process *agent;
    bool (*headers)(struct reason *why); /* what sets up the kernel headers, once the program runs */
};

/* The signals that exec_mode_run reads; init blocks them before anything else. */
sigset_t exec_mode_signals(void);

/* Run agent and program to the program's end, as PID 1. The agent may take to its byte as long as the host
 * lets a boot take, which alone knows its load. Prints AGENT-READY, PROGRAM-START and the stages; the exit
 * report is left to the caller. Always comes back with an outcome. */
struct outcome exec_mode_run(const struct exec_mode *mode);

#endif
