// SPDX-License-Identifier: Apache-2.0
/* What this process may still do once it reads what a VMM wrote. */
#pragma once

/** Refuse all system calls but reading, writing and the end. Returns 0, or -1 with errno set. */
int install_filter(void);
