// SPDX-License-Identifier: Apache-2.0
/* An agent that does to its gate what the name of its file says, or in a real guest what `fake_agent=` on the
 * kernel's command line does. */
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static char text[PATH_MAX];

static const char *find_name(void)
{
    static const char key[] = "fake_agent=";
    int file = open("/proc/cmdline", O_RDONLY);
    ssize_t length = read(file, text, sizeof text - 1);
    (void)close(file);
    char *word = length > 0 ? strstr(text, key) : NULL;
    if (word != NULL) {
        word[strcspn(word, " \n")] = '\0';
        return word + sizeof key - 1;
    }
    length = readlink("/proc/self/exe", text, sizeof text - 1);
    text[length > 0 ? length : 0] = '\0';
    return length > 0 ? strrchr(text, '/') + 1 : "";
}

int main(void)
{
    const char *name = find_name();
    (void)fcntl(3, F_SETFL, 0); /* Init's own end does not block, nor would this one. */
    if (strncmp(name, "byte", 4) == 0)
        (void)!write(3, "", 1);
    if (strcmp(name, "byte-power-off") == 0) {
        int first; /* Init says which is the first of the program's namespace, once it runs. */
        if (read(3, &first, sizeof first) == (ssize_t)sizeof first && kill(first, 0) == 0)
            (void)kill(1, 38);
        (void)pause();
    }
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
