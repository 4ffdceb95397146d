/* SPDX-License-Identifier: Apache-2.0 */
/* What a process does with signals, by its status in /proc (proc_pid_status(5)). */
#ifndef HYPEMAN_SIGNALSETS_H
#define HYPEMAN_SIGNALSETS_H

#include <stdbool.h>
#include <stdint.h>

/* Bit N - 1 is signal N's. */
struct signal_sets {
    uint64_t blocked;
    uint64_t ignored;
    uint64_t caught;
};

/* All empty where the text says nothing of them. */
struct signal_sets signal_sets_parse(const char *status);

bool signal_in(uint64_t set, int number);

/* Does it end a process that has not said what it is to do? */
bool signal_ends(int number);

#endif
