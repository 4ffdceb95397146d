/* SPDX-License-Identifier: Apache-2.0 */
/* Who makes the definition's check: a process beside the program, which tells init by a pipe, or in systemd
 * mode a service, which tells the host itself. */
#ifndef HYPEMAN_READINESS_H
#define HYPEMAN_READINESS_H

#include "config.h"
#include "probe.h"
#include "runfolder.h"

#include <sys/types.h>

#define READY_FILE RUN_FOLDER "/ready"

/* What the process says: one write each. */
struct ready_news {
    enum { READY_WATCHES, READY_WAITS, READY_PASSED } kind;
    struct reason why; /* of READY_WAITS */
};

/* Fork a process that makes the check of the config until it passes. Gives back its pid, and in *news the
 * non-blocking pipe of its ready_news; -1 with a reason if there is none. A check that has to be there before
 * the program is waited for. */
pid_t readiness_start(const struct config *config, const struct probe_place *place, int *news,
                      struct reason *why);

/* The program has ended: what it said last, and the process has not passed on, is waited for. */
void readiness_end(const struct config *config, int console, int news);

/* For the service: what it needs of the config, in READY_FILE. */
bool readiness_write(const struct config *config, struct reason *why);

/* `hypeman-init ready`, the service. Its exit status. */
int readiness_main(void);

#endif
