// SPDX-License-Identifier: Apache-2.0
/* How the program ends: its caller tells these exit statuses apart (hypemand/vmm/intake.py). */
#pragma once

enum status {
    STATUS_DONE = 0,
    STATUS_FAILED = 1,     /* a read or write failed, or the arguments are wrong */
    STATUS_NO_SPACE = 2,   /* on the file system, or in a quota */
    STATUS_BAD_STREAM = 3, /* it is none that can be taken apart */
    STATUS_TOO_LARGE = 4,  /* it has more than its bounds */
    STATUS_CUT_SHORT = 5,  /* it ends before its end */
};

/** Write one line to standard error and end the program. */
_Noreturn void fail(enum status status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/** End it since a write to `what` has failed, for the reason in errno. */
_Noreturn void fail_to_write(const char *what);
