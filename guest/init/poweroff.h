/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_POWEROFF_H
#define HYPEMAN_POWEROFF_H

/* Remember, while /sys is there, how this machine can be turned off. */
void power_off_prepare(void);

/* Kill what still runs, let the console drain, make the disk clean, turn the machine off. */
_Noreturn void power_off(int console, int initrd);

/* For init's own crash: an exit report and the power off, with nothing but system calls. */
void crash_handlers_install(const char *boot);

#endif
