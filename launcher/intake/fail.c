// SPDX-License-Identifier: Apache-2.0
#include "fail.h"

#include <errno.h>
#include <string.h>

_Noreturn void fail_to_write(const char *what)
{
    enum status status = errno == ENOSPC || errno == EDQUOT ? STATUS_NO_SPACE : STATUS_FAILED;
    fail(status, "cannot write %s: %s", what, strerror(errno));
}
