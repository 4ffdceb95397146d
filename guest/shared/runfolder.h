/* SPDX-License-Identifier: Apache-2.0 */
/* Where the guest side keeps what belongs to this boot. */
#ifndef HYPEMAN_RUNFOLDER_H
#define HYPEMAN_RUNFOLDER_H

#define RUN_FOLDER "/run/hypeman"

/* Of a warm start: its kernel command line, which is shown in the place of its template's. */
#define SHOWN_WORDS RUN_FOLDER "/cmdline"

#endif
