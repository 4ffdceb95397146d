// SPDX-License-Identifier: Apache-2.0
/* The sockets that the daemon and ExecStop= reach the VMM by. The launcher makes them, since the VMM may not
 * make files; the VMM serves them. */
#pragma once

/* Descriptors that the VMM is started with: hypemand/vmm/commandline.py names them on its command line. */
enum fd_number {
    FD_TAP = 3,
    FD_QMP = 4,
    FD_AGENT = 5,
    FD_REPORT = 6,
    FD_STOP = 7,
    FD_SECRETS = 8,
    FD_STATE = 9, /* of a saved VM */
    FD_FREE = 16, /* the launcher's own are from here on */
};

/** Put a descriptor at a number, to stay open across execve. Returns 0 or -1 with errno. */
int place_fd(int fd, int number);

/** Listen on NAME.sock for each port in the runtime folder, anew, at its descriptor. Returns 0 or -1; it has
 * said why. */
int open_ports(const char *runtime);

/** A unix socket that is connected to a path within `seconds`, or -1 with errno. */
int connect_socket(const char *path, int type, long seconds);
