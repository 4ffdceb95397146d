// SPDX-License-Identifier: Apache-2.0
/* An agent that does to its gate what the name of its file says, or in a real guest what `fake_agent=` on the
 * kernel's command line does. */
#include "programnews.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
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

/* Type a line and the end of input; what the program says goes to the console, in parentheses. */
static void attach(void)
{
    struct program_news news;
    struct program_ends ends, none;
    char bytes[4096];
    while (!program_news_receive(3, &news, &ends))
        continue;
    bool terminal = ends.terminal >= 0;
    (void)!write(ends.input, terminal ? "typed\n\4" : "typed\n", terminal ? 7 : 6);
    (void)close(ends.input);
    while (!program_news_receive(3, &news, &none))
        continue;
    (void)!write(ends.console, "(", 1);
    for (int i = 0; i < 2; i++) {
        ssize_t got;
        while ((got = read(i == 0 ? ends.output : ends.error, bytes, sizeof bytes)) > 0)
            (void)!write(ends.console, bytes, (size_t)got);
    }
    (void)!write(ends.console, news.ended && news.code == 7 ? ")\n" : "?\n", 2);
    (void)!write(3, "", 1);
}

/* Once it is admitted, which it does not read: its byte, and its end before init comes to read that. Init
 * runs on the same CPU until then, and only when nobody else has anything to do. */
static int leave(void)
{
    static const struct sched_param none = {.sched_priority = 0};
    struct pollfd admitted = {.fd = 3, .events = POLLIN};
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((size_t)sched_getcpu(), &one);
    if (poll(&admitted, 1, -1) != 1 || sched_setaffinity(0, sizeof one, &one) != 0 ||
        sched_setaffinity(getppid(), sizeof one, &one) != 0 ||
        sched_setscheduler(getppid(), SCHED_IDLE, &none) != 0)
        return 4;
    return write(3, "", 1) == 1 ? 0 : 4;
}

int main(void)
{
    const char *name = find_name();
    char admission;
    if (strcmp(name, "byte-unadmitted") == 0)
        return leave();
    (void)fcntl(3, F_SETFL, 0); /* Init's own end does not block, nor would this one. */
    (void)!read(3, &admission, sizeof admission);
    if (strncmp(name, "byte", 4) == 0)
        (void)!write(3, "", 1);
    if (strcmp(name, "byte-power-off") == 0) {
        int first; /* Init says which is the first of the program's namespace, once it runs. */
        if (read(3, &first, sizeof first) == (ssize_t)sizeof first && kill(first, 0) == 0)
            (void)kill(1, 38);
        (void)pause();
    }
    if (strcmp(name, "byte-attach") == 0)
        attach();
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
