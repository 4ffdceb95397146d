/* SPDX-License-Identifier: Apache-2.0 */
/* A volume that is used for the first time begins with what the image has in its place, as under Docker. */
#ifndef HYPEMAN_FIRSTUSE_H
#define HYPEMAN_FIRSTUSE_H

#include <stdbool.h>

/* `volume` is an fd of the root of a new ext4 if that has an empty lost+found and nothing else. It gets the
 * content, owner, mode and attributes of `folder`, and loses lost+found, which tells that it is new: that is
 * never done again. A copy that is cut off, by a loss of power too, is begun anew or completed by the next
 * call. True also for a volume that is not new, which is left as it is; false with errno. */
bool first_use(int volume, int folder);

#endif
