/* SPDX-License-Identifier: Apache-2.0 */
/* What init says: sentinels on the console and a copy on the report port. */
#ifndef HYPEMAN_REPORT_H
#define HYPEMAN_REPORT_H

#include "sentinel.h"

#include <stdbool.h>
#include <stddef.h>

enum { STAGES_MAX = 16, UNSENT_SIZE = 4096 };

struct stage {
    const char *name;
    struct timespec start;
    struct timespec end;
};

struct report {
    int console;     /* -1 until report_console */
    const int *port; /* where the port's fd stands, -1 in it until the port is open */
    char boot[BOOT_ID_LENGTH + 1];
    struct timespec origin; /* CLOCK_BOOTTIME that stages count from: that of the thaw, or 0 */
    struct stage stages[STAGES_MAX];
    size_t stage_count;
    bool stage_open;          /* the last of them has not ended */
    char unsent[UNSENT_SIZE]; /* said before the report port was open */
    size_t unsent_size;
};

/* Open the console if it is not, without echo, output processing or flow control, waiting for it 10 s at
 * most. Init keeps it open: the settings of this tty end with its last fd. */
void report_console(struct report *report);

/* A stage begins; the one before ends. They are only remembered, until report_stages writes them all. */
void report_stage(struct report *report, const char *name);

/* The stage that is on ends, and none begins. */
void report_stage_end(struct report *report);

/* A stage that was on beside the others, and is over. Only between two others. */
void report_stage_beside(struct report *report, struct stage stage);
void report_stages(struct report *report);

/* Something that the boot goes on without: in the kernel's log and on the console. */
void report_warning(struct report *report, const char *words);

/* The stage `thaw` begins, from which on those that follow count: those before were a template's. */
void report_thaw(struct report *report);

/* It ends, and is reported, which is the sign of life that the host waits for: by the console, and again with
 * the other stages, since the host may not listen at the report port yet. */
void report_thawed(struct report *report);

void report_program_start(struct report *report, const char *mode);
void report_agent_ready(struct report *report);
void report_ready(struct report *report);
void report_waiting(struct report *report, const char *reason);
void report_headers_start(struct report *report);
void report_headers_ready(struct report *report);
void report_headers_failed(struct report *report, const char *error);
void report_exit(struct report *report, int code, const char *message);

/* Send what was said before the report port was there. */
void report_flush(struct report *report);

#endif
