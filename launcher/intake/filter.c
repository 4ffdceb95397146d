// SPDX-License-Identifier: Apache-2.0
#include "filter.h"

#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the numbers of system calls are those of x86-64"
#endif

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (field))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
/* the statement behind it is for what is equal, or not: */
#define IF_EQUAL(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, 1)
#define UNLESS_EQUAL(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 1, 0)
#define ALLOW_CALL(call) IF_EQUAL(call), ALLOW

static const struct sock_filter FILTER[] = {
    LOAD(offsetof(struct seccomp_data, arch)),
    UNLESS_EQUAL(AUDIT_ARCH_X86_64),
    REFUSE,
    LOAD(offsetof(struct seccomp_data, nr)),
    ALLOW_CALL(SYS_read),
    ALLOW_CALL(SYS_pwritev),
    ALLOW_CALL(SYS_write),
    ALLOW_CALL(SYS_pwrite64),
    ALLOW_CALL(SYS_fallocate),
    ALLOW_CALL(SYS_sync_file_range),
    ALLOW_CALL(SYS_fsync),
    ALLOW_CALL(SYS_exit_group),
#ifdef __SANITIZE_ADDRESS__ /* in the tests: its stacks at the end, and memory for what glibc allocates */
    ALLOW_CALL(SYS_sigaltstack),
    ALLOW_CALL(SYS_mmap),
    ALLOW_CALL(SYS_munmap),
    ALLOW_CALL(SYS_madvise),
#endif
    REFUSE,
};

int install_filter(void)
{
    const struct sock_fprog program = {
        .len = sizeof(FILTER) / sizeof(FILTER[0]), .filter = (struct sock_filter *)FILTER, /* read only */
    };
    /* without it the kernel takes no filter of a process without capabilities */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    /* not seccomp(2), which the filter of the daemon refuses */
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0);
}
