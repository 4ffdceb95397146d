// SPDX-License-Identifier: Apache-2.0
#include "laststage.h"

#include "announce.h"
#include "bootid.h"
#include "files.h"
#include "keeper.h"
#include "poweroff.h"
#include "unitfiles.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#define OLD_ROOT "/oldroot"

struct last_words last_words_for(const char *verb, bool requested)
{
    /* Whoever asked for the end does not want to see the VM come back. */
    if (requested)
        return (struct last_words){"stopped on request: powered off in order", false};
    if (strcmp(verb, "reboot") == 0 || strcmp(verb, "kexec") == 0)
        return (struct last_words){"rebooted from inside", true};
    if (strcmp(verb, "halt") == 0)
        return (struct last_words){"halted from inside", false};
    return (struct last_words){"powered off from inside", false};
}

_Noreturn void last_stage(const char *verb)
{
    char boot[BOOT_ID_LENGTH + 1];
    char line[SENTINEL_LINE_MAX] = "";
    bool requested = access(RUN_FOLDER "/" STOP_REQUESTED, F_OK) == 0;
    struct last_words words = last_words_for(verb, requested);
    power_off_prepare();
    kill_the_rest();
    if (boot_id_current(boot))
        announce(line, sentinel_exit(line, 0, words.message, boot));
    sync();
    /* Nobody is left in there: with the last of its mounts the overlay ends, and with that the disk is clean.
     */
    (void)umount2(OLD_ROOT, MNT_DETACH);
    sync();
    int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (console >= 0)
        drain_console(console);
    if (words.reboot)
        restart_machine();
    turn_off();
}
