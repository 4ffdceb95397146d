// SPDX-License-Identifier: Apache-2.0
/* Errors, as lines of the unit's journal. */
#pragma once

/** Write a line to standard error. */
__attribute__((format(printf, 1, 2))) void say(const char *format, ...);
