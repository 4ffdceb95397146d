// SPDX-License-Identifier: Apache-2.0
/* ExecStart= of a VM's unit: launcher [--secrets=NAME,...] [--restore=STATE,BOOT,COUNT |
 * --warm=STATE,CRC,COUNT,FILE:SIZE:MTIME,...] [--preload=LIBRARY,MEMORY] RUNTIME_DIR TAP_SOCKET|-
 * KERNEL_WORDS VMM ARGUMENT...
 *
 * It becomes the VMM, with descriptors for its TAP device, its sockets (ports.h) and the disk with the
 * guest's secrets (secrets.h), fewer rights than it had itself (filter.h), and -append with the boot id: a
 * new one for every cold start, also for a restart that systemd makes alone, and kept beside the run's id
 * (bootid.h). Beside the VMM it leaves the process that machinectl signals (leader.h).
 *
 * With --restore it goes on from a saved VM (saved.h), as long as STATE is there: by the last COUNT
 * arguments, which a cold start goes without, without kernel and initrd, and with the boot id that the guest
 * has.
 *
 * With --warm it goes on from a template (warm.h) in the same way, but as a VM of its own, with a new boot
 * id; where the template is gone, or not what it was, or the guest has not gone on from it in this run
 * (hypeman-console), it is a cold start. In both cases the VMM loads LIBRARY (preload/memory.c), which is to
 * know of the file of the guest's memory.
 *
 * It takes no memory but its stack, and needs no daemon: the TAP device is the network service's to open
 * (tap.h), which systemd starts if need be. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bootid.h"
#include "filter.h"
#include "leader.h"
#include "ports.h"
#include "saved.h"
#include "say.h"
#include "secrets.h"
#include "tap.h"
#include "warm.h"
#include "words.h"

enum argument { RUNTIME = 1, TAP, WORDS, VMM };

/* The service answers while the ports are made. Returns 0 or -1; it has said why. */
static int open_descriptors(const char *runtime, const char *tap)
{
    int connection = -1;
    if (strcmp(tap, "-") != 0) {
        connection = tap_request(tap);
        if (connection < 0)
            return -1;
    }
    if (open_ports(runtime) < 0)
        return -1;
    if (connection < 0)
        return 0;
    int fd = tap_receive(connection);
    if (fd < 0)
        return -1;
    if (place_fd(fd, FD_TAP) < 0) {
        say("cannot pass the TAP device to the VMM: %s", strerror(errno));
        return -1;
    }
    return 0;
}

/* The kernel's command line, with a boot id that is on record: `boot` or, where that is empty, a new one.
 * Returns 0 or -1; it has said why. */
static int compose_line(char *line, const char *runtime, const char *words, char boot[ID_LENGTH + 1])
{
    const char *run = getenv("INVOCATION_ID");
    if (!is_id(run)) {
        say("INVOCATION_ID is not 32 hex digits; this program must be started by systemd");
        return -1;
    }
    if (boot[0] == '\0' && make_boot_id(boot) < 0) {
        say("cannot generate a boot id: %s", strerror(errno));
        return -1;
    }
    const char *wrong = compose_words(line, words, boot);
    if (wrong != NULL) {
        say("%s", wrong);
        return -1;
    }
    if (keep_run_record(runtime, run, boot) < 0) {
        say("cannot write %s/run: %s", runtime, strerror(errno));
        return -1;
    }
    return 0;
}

/* The value of an option, which is taken from the arguments; NULL if it is not the first of them. */
static const char *take_option(int *argc, char ***argv, const char *option)
{
    size_t length = strlen(option);
    if (*argc < 2 || strncmp((*argv)[1], option, length) != 0)
        return NULL;
    ++*argv;
    --*argc;
    return (*argv)[0] + length;
}

/* What a start goes on from. */
struct origin {
    const char *restore; /* the values of the options, or NULL */
    const char *template;
    const char *preload;
    size_t arguments; /* it goes on from a template: so many of the last are for that, else 0 */
    bool is_restored; /* it goes on from what was saved of it */
};

/* Have the VMM load LIBRARY, which is to know of MEMORY. NULL: none. Returns 0 or -1; it has said why. */
static int preload_library(const char *value)
{
    static char library[256];
    static char memory[256];
    const char *comma = value == NULL ? NULL : strchr(value, ',');
    if (value == NULL)
        return 0;
    if (comma == NULL ||
        snprintf(library, sizeof(library), "LD_PRELOAD=%.*s", (int)(comma - value), value) >=
            (int)sizeof(library) ||
        snprintf(memory, sizeof(memory), "HYPEMAN_MEMORY=%s", comma + 1) >= (int)sizeof(memory)) {
        say("--preload is not LIBRARY,MEMORY");
        return -1;
    }
    if (putenv(library) == 0 && putenv(memory) == 0)
        return 0;
    say("cannot set the environment of the VMM: %s", strerror(errno));
    return -1;
}

/* Whether the VM is restored, and with which boot id, or goes on from a template: without the arguments for
 * that, if it does not. Returns 0 or -1; it has said why. */
static int choose_start(int *argc, char **argv, struct origin *origin, char boot[ID_LENGTH + 1])
{
    struct saved saved;
    struct warm warm;
    if (origin->template != NULL) {
        if (parse_warm(origin->template, &warm) < 0)
            return -1;
        if ((*argc <= RUNTIME || !has_stalled(argv[RUNTIME])) && open_template(&warm) > 0)
            origin->arguments = warm.arguments;
        else
            *argc -= (int)warm.arguments;
        return 0;
    }
    if (origin->restore == NULL)
        return 0;
    if (parse_saved(origin->restore, &saved) < 0)
        return -1;
    int found = open_saved(&saved);
    if (found > 0) {
        memcpy(boot, saved.boot, ID_LENGTH + 1);
        origin->is_restored = true;
        return preload_library(origin->preload);
    }
    *argc -= (int)saved.arguments;
    return found;
}

/* What a guest needs that goes on from a template. Where that cannot be written it is a cold start. Returns 0
 * or -1; it has said why. */
static int prepare_warm(int *argc, struct origin *origin, const char *runtime, const char *line)
{
    const char *run = getenv("INVOCATION_ID"); /* there is one: compose_line */
    bool warm = origin->arguments > 0;
    if (warm && write_start_block(runtime, line) < 0) {
        *argc -= (int)origin->arguments;
        origin->arguments = 0;
        warm = false;
    }
    if (origin->template != NULL && note_start(runtime, run, warm) < 0) {
        say("cannot note how the VM starts in %s: %s", runtime, strerror(errno));
        return -1;
    }
    return warm ? preload_library(origin->preload) : 0;
}

/* A guest that goes on has its kernel and initrd in its memory, and its line there or in the start block: the
 * VMM need not read 20 MB for nothing. Returns how many arguments are left. */
static size_t leave_out_boot(char **arguments, size_t count)
{
    size_t left = 1; /* the VMM itself */
    for (size_t i = 1; i < count; i++) {
        if (strcmp(arguments[i], "-kernel") == 0 || strcmp(arguments[i], "-initrd") == 0)
            i++;
        else
            arguments[left++] = arguments[i];
    }
    return left;
}

int main(int argc, char **argv)
{
    static char append[] = "-append";
    static char line[WORDS_SIZE];
    char boot[ID_LENGTH + 1] = "";
    const char *secrets = take_option(&argc, &argv, "--secrets=");
    struct origin origin = {.arguments = 0, .is_restored = false};
    origin.restore = take_option(&argc, &argv, "--restore=");
    origin.template = take_option(&argc, &argv, "--warm=");
    origin.preload = take_option(&argc, &argv, "--preload=");
    /* before the leader is started: with it this process loses the right to its own /proc */
    if (secrets != NULL && make_secrets(secrets) < 0)
        return EXIT_FAILURE;
    if (choose_start(&argc, argv, &origin, boot) < 0)
        return EXIT_FAILURE;
    if (argc <= VMM) {
        say("usage: launcher [--secrets=NAME,...] [--restore=STATE,BOOT,COUNT | --warm=STATE,CRC,COUNT,"
            "FILE:SIZE:MTIME,...] [--preload=LIBRARY,MEMORY] RUNTIME_DIR TAP_SOCKET|- KERNEL_WORDS VMM "
            "ARGUMENT...");
        return EXIT_FAILURE;
    }
    if (compose_line(line, argv[RUNTIME], argv[WORDS], boot) < 0)
        return EXIT_FAILURE;
    /* before there is a descriptor that it could hold, but for that of the secrets, which it closes */
    if (start_leader(argv[RUNTIME]) < 0) {
        say("cannot start the leader process: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    /* last of what may fail: once it is noted that a guest goes on from a template, an end is that one's
     * fault
     */
    if (open_descriptors(argv[RUNTIME], argv[TAP]) < 0 ||
        prepare_warm(&argc, &origin, argv[RUNTIME], line) < 0)
        return EXIT_FAILURE;
    if (install_filter() < 0) {
        say("cannot install the system call filter: %s", strerror(errno));
        return EXIT_FAILURE;
    }
    /* VMM ARGUMENT... -append LINE in the place of what was given, which is longer by two */
    char **vmm = argv + (VMM - 2);
    size_t given = (size_t)(argc - VMM);
    memmove(vmm, argv + VMM, given * sizeof(*vmm));
    if (origin.arguments > 0 || origin.is_restored) {
        given = leave_out_boot(vmm, given);
    } else {
        vmm[given++] = append;
        vmm[given++] = line;
    }
    vmm[given] = NULL; /* in the place of what a start of this kind goes without */
    execv(vmm[0], vmm);
    say("cannot execute %s: %s", vmm[0], strerror(errno));
    return EXIT_FAILURE;
}
