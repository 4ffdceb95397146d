/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_ENVIRONMENT_H
#define HYPEMAN_ENVIRONMENT_H

#include "identity.h"

#include <stdbool.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* The value of a variable in a NULL-ended environment, or NULL. */
const char *environment_get(char *const *environment, const char *name);

/* A variable as it may stand in an environment: a name that is not empty, and `=`. */
bool environment_valid(const char *variable);

/* Where the variables that are added stand. */
struct environment_store {
    char home[IDENTITY_HOME_MAX + sizeof "HOME="];
    char hostname[64 + sizeof "HOSTNAME="]; /* hostname(7) */
};

/* The environment as it was given, and PATH, HOME and HOSTNAME where it does not name them; `hostname` NULL:
 * not that one. The array is an allocation of the caller's to free; the strings are the caller's, but for
 * those in `store`. NULL if there is no memory. */
char **environment_build(char *const *given, const char *home, const char *hostname,
                         struct environment_store *store);

#endif
