/* SPDX-License-Identifier: Apache-2.0 */
/* The freeze point: up to it nothing of a boot depends on what the VM is. A template is a VM that was saved
 * there; a warm start goes on from one, with other disks and an identity of its own (docs/protocol.md, "Warm
 * start"). A cold start passes by. */
#ifndef HYPEMAN_WARMSTART_H
#define HYPEMAN_WARMSTART_H

#include "agentprocess.h"
#include "config.h"
#include "reason.h"
#include "report.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { START_BLOCK_SIZE = 4096 };

struct warm_start {
    bool warm;
    char block[START_BLOCK_SIZE + 1];
    const char *words; /* the command line of this start, in the block */
};

/* Learn the boot id: from the kernel's command line or, where that is of a template, when this goes on as
 * another VM, with its clock, and random numbers that nobody else has. A template has the agent
 * with it. `events`: where that has waited, what it has heard of devices by; it stays open. False with words.
 */
bool freeze_point(struct warm_start *start, struct report *report, struct agent_process *agent, int *events,
                  struct reason *why);

/* What of a template differs from the machine that the configuration is of: its disks are all writable, and
 * its network device has another MAC address. False with words. */
bool warm_start_adapt(const struct warm_start *start, struct config *config, struct reason *why);

/* Have /proc/cmdline show the words of this start, in the root that was switched to. False with words. */
bool warm_start_show(const struct warm_start *start, struct reason *why);

/* Take the start block apart, which is written to. False with words. */
bool start_block_parse(struct warm_start *start, char boot[BOOT_ID_LENGTH + 1], struct timespec *clock,
                       uint8_t *entropy, struct reason *why);

#endif
