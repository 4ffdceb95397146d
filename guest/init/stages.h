/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of the boot that go on at the same time. */
#ifndef HYPEMAN_STAGES_H
#define HYPEMAN_STAGES_H

#include "reason.h"
#include "report.h"

#include <stdbool.h>

struct job {
    const char *name; /* of its stage */
    bool (*work)(void *machine, struct reason *why);
};

/* Do a job as a stage of its own. */
bool stage_run(struct job job, void *machine, struct report *report, struct reason *why);

/* Do both at once and wait for both: `beside` in a process of its own, so nothing that it leaves in memory
 * stays. Where one fails there is no waiting for the other. */
bool stages_run(struct job here, struct job beside, void *machine, struct report *report, struct reason *why);

#endif
