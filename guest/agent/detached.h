/* SPDX-License-Identifier: Apache-2.0 */
/* A file system of the kernel that is mounted nowhere: it is the kernel's own, whatever the guest has in its
 * place. */
#ifndef HYPEMAN_DETACHED_H
#define HYPEMAN_DETACHED_H

/* An fd of its root, or -1 with errno. */
int mount_detached(const char *type);

#endif
