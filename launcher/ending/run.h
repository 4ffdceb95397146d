/* SPDX-License-Identifier: Apache-2.0 */
/* The run of a VM that ends: was it put into Standby? */
#pragma once

#include <stdbool.h>

/** Has the run of that id (the unit's invocation id) been saved? Its guest is not to run any more, so that it
 * cannot be asked for anything. `state`: the folder of what lasts of the VM. */
bool is_saved(const char *state, const char *run);

/** And is that written down as the end of the run, so that nothing is left to be found out? */
bool is_recorded(const char *state, const char *run);
