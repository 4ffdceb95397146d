// SPDX-License-Identifier: Apache-2.0
/* This process becomes the unit's main process in the place of another one, which is ended. */
#pragma once

#include <stdbool.h>

/* Tell systemd that this is the main process, and end the other one, of the pidfd. False with errno: it is
   not certain that systemd knows, and the other one lives. */
bool take_over(int program);
