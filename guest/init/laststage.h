/* SPDX-License-Identifier: Apache-2.0 */
/* PID 1 again, at the very end: systemd hands over to /run/initramfs/shutdown when all has been stopped. */
#ifndef HYPEMAN_LASTSTAGE_H
#define HYPEMAN_LASTSTAGE_H

#include <stdbool.h>

/* How the end is reported: `verb` as systemd says it, `requested` if the host asked for the end. */
struct last_words {
    const char *message;
    bool reboot;
};
struct last_words last_words_for(const char *verb, bool requested);

/* `verb` as systemd-shutdown(8) passes it on: poweroff, reboot, halt, kexec. */
_Noreturn void last_stage(const char *verb);

#endif
