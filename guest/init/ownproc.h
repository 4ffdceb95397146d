/* SPDX-License-Identifier: Apache-2.0 */
/* Init's own /proc. The program mounts that of its PID namespace in its place, in which init is not to be
 * found. */
#ifndef HYPEMAN_OWNPROC_H
#define HYPEMAN_OWNPROC_H

/* An fd (O_PATH) of what is mounted at /proc at the first call, held from then on; -1 if there is nothing. */
int own_proc(void);

#endif
