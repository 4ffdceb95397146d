/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HYPEMAN_SYSTEM_H
#define HYPEMAN_SYSTEM_H

#include "hosts.h"
#include "reason.h"

#include <stdbool.h>

/* The host name; /etc/hostname where the image has none; /etc/hosts with the VM's name and those of `hosts`.
 */
bool system_name(const char *name, const struct hosts *hosts, struct reason *why);

/* The agent's and init's own wish not to be killed for memory. */
void system_protect(void);

/* The loopback interface comes up: under TCG dear, and the same in all VMs. */
void system_loopback(void);

/* Kernel parameters of exec mode: what a container may that a process on a machine may not, whoever runs it
 * (ports below 1024, and ping), and limits as of a host, which this kernel derives from its own little
 * memory. */
void system_open(void);

#endif
