/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that is asked to power off, over a port of its VMM that is for this alone. */
#pragma once

/** Have the guest power off, whose program gets `grace` seconds, and wait until the VMM has ended, which has
 * its sockets in the folder `runtime`. No deadline of its own: systemd ends this process. A guest that is
 * paused is resumed, since it does not hear the order before. That is the daemon's to do while it is there:
 * whoever comes meanwhile waits for the greeting of the control socket.
 *
 * Returns 0, also where there is no VMM any more, or -1 with errno. */
int guest_stop(const char *runtime, int grace);
