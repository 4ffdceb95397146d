/* SPDX-License-Identifier: Apache-2.0 */
/* The process of exec mode's agent. It waits for a root, so that it can be part of a template; a boot has it
 * started when there is one. */
#ifndef HYPEMAN_AGENTPROCESS_H
#define HYPEMAN_AGENTPROCESS_H

#include "reason.h"
#include "spawn.h"

#include <sys/types.h>

struct agent_process {
    int binary;              /* an fd of it, or -1 with the reason why there is none */
    struct reason no_binary; /* also where it was to be started and was not */
    pid_t pid;               /* 0: it has not been started */
    int socket;              /* its gate; -1 without a process */
    int verdict;             /* of its exec, which `spawn` is of; -1 without a process */
    struct spawn spawn;
};

/* For one that is not in static memory. */
#define AGENT_PROCESS_NONE ((struct agent_process){.binary = -1, .socket = -1, .verdict = -1})

/* Find its binary, which is executed by an fd, from whichever root. */
void agent_find(struct agent_process *agent, const char *path);

/* Start it, if it was not. False with the words in `no_binary`. */
bool agent_start(struct agent_process *agent);

/* Wait until it waits, or has ended, 10 s at most: a template has it complete. */
void agent_await(const struct agent_process *agent);

/* Admit it to the root that is init's own. */
void agent_admit(const struct agent_process *agent);

/* End one that is not wanted, if there is one. */
void agent_dismiss(struct agent_process *agent);

#endif
