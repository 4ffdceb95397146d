// SPDX-License-Identifier: Apache-2.0
/* The VM's TAP device, from the network service. It knows by the uid of the process that asks whose VM that
 * is, and answers in one packet:
 *
 *   "F"       with one descriptor: the TAP device, opened
 *   "E" TEXT  why there is none
 */
#pragma once

/** Seconds to wait for the service, which systemd may have to start first: for its socket, and as long again
 * for the answer. */
#define TAP_DEADLINE 10L

/** Connect to the service: that is the request. Returns a socket, or -1; it has said why. */
int tap_request(const char *path);

/** Wait for the answer, and close the socket. Returns the TAP device's descriptor, with FD_CLOEXEC, or -1; it
 * has said why. */
int tap_receive(int connection);
