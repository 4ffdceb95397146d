/* SPDX-License-Identifier: Apache-2.0 */
/* What is to be checked: the record `ready` of docs/protocol.md. */
#ifndef HYPEMAN_CHECK_H
#define HYPEMAN_CHECK_H

#include "reason.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    CHECK_ARGUMENTS_MAX = 64,
    CHECK_PATH_MAX = 1024,
    CHECK_ATTEMPT_MS = 10000, /* that an attempt may take, or the interval if that is longer */
};

enum check_kind { CHECK_NONE, CHECK_TCP, CHECK_HTTP, CHECK_EXEC, CHECK_NOTIFY, CHECK_LOG };

/* Strings are those of the record. */
struct check {
    enum check_kind kind;
    int interval_ms; /* the longest time between two attempts */
    int timeout_ms;  /* of an attempt; 0: CHECK_ATTEMPT_MS, or the interval if that is longer */
    uint16_t port;
    bool loopback;    /* who listens there alone counts, too: there is no other address */
    const char *path; /* of a request */
    int status;       /* of its answer; 0: 200 to 399 */
    char *argv[CHECK_ARGUMENTS_MAX + 1];
    const char *unit; /* of the guest's systemd, or NULL */
    const char *pattern;
};

/* Take the value of a `ready` record, which stays in use and is written to. */
bool check_parse(char *value, struct check *check, struct reason *why);

/* Must it listen before the program runs? */
bool check_comes_first(const struct check *check);

/* Milliseconds that an attempt may take. */
int check_timeout(const struct check *check);

#endif
