// SPDX-License-Identifier: Apache-2.0
/* An agent that does to its gate what the name of its file says. */
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

int main(void)
{
    char path[PATH_MAX] = "";
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    const char *name = length > 0 ? strrchr(path, '/') + 1 : "";
    if (strncmp(name, "byte", 4) == 0)
        (void)!write(3, "", 1);
    if (strcmp(name, "byte-stay") == 0 || strcmp(name, "silent") == 0)
        (void)pause();
    if (strcmp(name, "close-stay") == 0) {
        (void)close(3);
        (void)pause();
    }
    if (strcmp(name, "byte-crash") == 0 || strcmp(name, "crash") == 0)
        (void)raise(SIGKILL);
    return 3;
}
