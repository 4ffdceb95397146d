/* SPDX-License-Identifier: Apache-2.0 */
/* What THAW says (docs/protocol.md): a guest that goes on. */
#ifndef HYPEMAN_THAW_H
#define HYPEMAN_THAW_H

#include "entropy.h"
#include "hosts.h"
#include "network.h"
#include "reason.h"

#include <stddef.h>
#include <time.h>

struct thaw {
    struct timespec clock;
    uint8_t entropy[ENTROPY_SIZE];
    /* What makes a fork another VM. NULL, or none of them: that stays. */
    const char *boot;
    const char *hostname;
    const char *machine_id;
    struct network network;
    struct hosts hosts;
    bool reset_ssh_host_keys;
};

/* Take its records, valid ones, which are written to and stay in use. */
bool thaw_parse(char *records, size_t size, struct thaw *thaw, struct reason *why);

void thaw_free(struct thaw *thaw);

#endif
