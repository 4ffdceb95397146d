// SPDX-License-Identifier: Apache-2.0
#include "environment.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *environment_get(char *const *environment, const char *name)
{
    size_t length = strlen(name);
    for (; *environment != NULL; environment++) {
        if (strncmp(*environment, name, length) == 0 && (*environment)[length] == '=')
            return *environment + length + 1;
    }
    return NULL;
}

bool environment_valid(const char *variable)
{
    const char *equals = strchr(variable, '=');
    return equals != NULL && equals != variable;
}

char **environment_build(char *const *given, const char *home, const char *hostname,
                         struct environment_store *store)
{
    static char default_path[] = "PATH=" DEFAULT_PATH;
    size_t count = 0;
    while (given[count] != NULL)
        count++;
    char **built = calloc(count + 4, sizeof *built);
    if (built == NULL)
        return NULL;
    for (size_t i = 0; i < count; i++)
        built[i] = given[i];
    if (environment_get(given, "PATH") == NULL)
        built[count++] = default_path;
    if (environment_get(given, "HOME") == NULL) {
        (void)snprintf(store->home, sizeof store->home, "HOME=%s", home);
        built[count++] = store->home;
    }
    if (hostname != NULL && environment_get(given, "HOSTNAME") == NULL) {
        (void)snprintf(store->hostname, sizeof store->hostname, "HOSTNAME=%s", hostname);
        built[count++] = store->hostname;
    }
    return built;
}
