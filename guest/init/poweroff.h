/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_POWEROFF_H
#define HYPEMAN_POWEROFF_H

#include "volumes.h"

/* Remember, while /sys is there, how this machine can be turned off. */
void power_off_prepare(void);

/* Kill what still runs, let the console drain, make disk and volumes clean, turn the machine off. */
_Noreturn void power_off(int console, int initrd, struct volumes *volumes);

/* For init's own crash: an exit report and the power off, with nothing but system calls. */
void crash_handlers_install(const char *boot);

/* What power_off is made of. */
void kill_the_rest(void);
void drain_console(int console);
_Noreturn void turn_off(void);

/* A reset, which ends the VMM as well; the host starts it again. */
_Noreturn void restart_machine(void);

#endif
