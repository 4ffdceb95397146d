/* SPDX-License-Identifier: Apache-2.0 */
/* Systemd mode: the image's own init becomes PID 1 of a root that is a mount namespace's real one. */
#ifndef HYPEMAN_SYSTEMDMODE_H
#define HYPEMAN_SYSTEMDMODE_H

#include "config.h"
#include "execmode.h"
#include "ports.h"
#include "report.h"

struct systemd_mode {
    const struct config *config;
    struct report *report;
    const struct ports *ports;
    int initrd; /* the initrd's root */
    const struct agent_process *agent;
};

/* Put into the image what it needs of us, leave the keeper behind, print PROGRAM-START and the stages, and
 * become the image's init. Comes back only with the reason why that could not be. */
struct outcome systemd_mode_run(const struct systemd_mode *mode);

/* hypeman-init as a command inside the guest: what the keeper, the units and systemd's last stage execute. */
int systemd_tool_main(int argc, char **argv);

#endif
