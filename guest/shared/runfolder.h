/* SPDX-License-Identifier: Apache-2.0 */
/* Where the guest side keeps what belongs to this boot. */
#ifndef HYPEMAN_RUNFOLDER_H
#define HYPEMAN_RUNFOLDER_H

#define RUN_FOLDER "/run/hypeman"

#endif
