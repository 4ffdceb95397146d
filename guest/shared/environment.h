/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_ENVIRONMENT_H
#define HYPEMAN_ENVIRONMENT_H

#include <stdbool.h>
#include <stddef.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* The value of a variable in a NULL-ended environment, or NULL. */
const char *environment_get(char *const *environment, const char *name);

/* A variable as it may stand in an environment: a name that is not empty, and `=`. */
bool environment_valid(const char *variable);

/* The environment as it was given, and PATH and HOME where it does not name them. The array is an allocation
 * of the caller's to free; the strings are the caller's, but for the one of HOME, which is kept in
 * `home_store` (of home_size bytes). NULL if there is no memory. */
char **environment_build(char *const *given, const char *home, char *home_store, size_t home_size);

#endif
