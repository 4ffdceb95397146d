// SPDX-License-Identifier: Apache-2.0
/* Has the daemon start the VM, by its API, without the time that hypemanctl's Python takes. */
#pragma once

#include "host.h"

/** START_REFUSED: the daemon has not taken the request, or there is none: hypemanctl finds out why.
 * START_LOST: it has, and what comes of it is not known. START_FAILED: the VM has ended before it was
 * Running, which is said. */
enum start { START_RUNNING, START_ENDED, START_FAILED, START_LOST, START_REFUSED };

/** Ask for a start, and wait until the VM is Running or has ended. What it waits for is STATUS=
 * (sd_notify(3)). START_ENDED: it has ended, and well. */
enum start start_by_daemon(const struct host *host);
