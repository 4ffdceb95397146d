/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_SERVE_H
#define HYPEMAN_SERVE_H

#include "reason.h"
#include "thaw.h"

#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#define AGENT_VERSION "2"

struct server {
    int port;   /* non-blocking */
    char *boot; /* the id of this boot, which THAW may replace */
    pid_t init; /* who is told to power off */
    void (*ready)(void);
    int (*set_clock)(const struct timespec *now); /* 0, or -1 with errno */
    bool frozen;                                  /* an agent before this one has frozen the guest */
    /* As standby_freeze and standby_thaw. */
    bool (*freeze)(pid_t keeper, struct reason *words);
    bool (*thaw)(const struct thaw *thaw, struct reason *why);
    void (*thawed)(void); /* what is left to do when the host has been answered; NULL: nothing */
};

/* Serve the port, calling `ready` once it is watched, until SIGTERM comes: true. False if that cannot be. */
bool serve(const struct server *server, struct reason *why);

#endif
