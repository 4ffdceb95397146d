// SPDX-License-Identifier: Apache-2.0
/* What the unit's SystemCallFilter= cannot say, since it knows calls by their names alone, and what the
 * launcher itself still needs. */
#pragma once

/** Have the kernel refuse with EPERM, from here on and for ever, in this process and what it executes:
 *
 *  - requests of ioctl(2) but those a VMM makes. A TAP device's descriptor lets its holder set the device's
 *    MAC, owner and filters, without any capability;
 *  - to make files, or to change their modes: what the VMM writes to is there already. (/run is memory.)
 *  - new sockets: the VMM has those it listens on. So it reaches no other service.
 *
 * Returns 0 or -1 with errno. */
int install_filter(void);
