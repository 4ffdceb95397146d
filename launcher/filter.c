// SPDX-License-Identifier: Apache-2.0
#include "filter.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef __x86_64__
#error "the numbers of system calls and the order of an argument's halves are those of x86-64"
#endif

/* asm/unistd_64.h; the C library's headers may be older than the kernel */
#define NR_OPENAT2 437
#define NR_FCHMODAT2 452
/* set in the number of calls of the x32 ABI */
#define X32_BIT 0x40000000U
/* fcntl.h has it with O_DIRECTORY, which is no offence */
#define TMPFILE_BIT 020000000
/* linux/kvm.h: the type of all its requests. Who cannot open /dev/kvm has nothing to use them on. */
#define KVM_TYPE 0xae00U
#define TYPE_MASK 0xff00U

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (field))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
/* the kernel itself looks at these 32 bits only, of an `unsigned int` or `int` argument */
#define ARGUMENT(number) (unsigned int)(offsetof(struct seccomp_data, args) + (number) * sizeof(__u64))
/* the statement behind it is for what is equal, or not: */
#define IF_EQUAL(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, 1)
#define UNLESS_EQUAL(value) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 1, 0)

#define REFUSE_CALL(call) IF_EQUAL(call), REFUSE
#define REFUSE_TO_MAKE(call, flags)                                                                          \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (call), 0, 4), LOAD(ARGUMENT(flags)),                                \
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT | TMPFILE_BIT, 0, 1), REFUSE, ALLOW
#define ALLOW_REQUEST(request) IF_EQUAL((unsigned int)(request)), ALLOW

static const struct sock_filter FILTER[] = {
    LOAD(offsetof(struct seccomp_data, arch)),
    UNLESS_EQUAL(AUDIT_ARCH_X86_64),
    REFUSE,
    LOAD(offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1),
    REFUSE,

    REFUSE_TO_MAKE(SYS_open, 1),
    REFUSE_TO_MAKE(SYS_openat, 2),
    REFUSE_CALL(SYS_creat),
    REFUSE_CALL(NR_OPENAT2), /* its flags are in memory, out of reach */
    REFUSE_CALL(SYS_mkdir),
    REFUSE_CALL(SYS_mkdirat),
    REFUSE_CALL(SYS_mknod),
    REFUSE_CALL(SYS_mknodat),
    REFUSE_CALL(SYS_link),
    REFUSE_CALL(SYS_linkat),
    REFUSE_CALL(SYS_symlink),
    REFUSE_CALL(SYS_symlinkat),
    REFUSE_CALL(SYS_rename),
    REFUSE_CALL(SYS_renameat),
    REFUSE_CALL(SYS_renameat2),
    REFUSE_CALL(SYS_chmod),
    REFUSE_CALL(SYS_fchmod),
    REFUSE_CALL(SYS_fchmodat),
    REFUSE_CALL(NR_FCHMODAT2),
    REFUSE_CALL(SYS_setxattr),
    REFUSE_CALL(SYS_lsetxattr),
    REFUSE_CALL(SYS_fsetxattr),

    REFUSE_CALL(SYS_socket),
    REFUSE_CALL(SYS_socketpair),
    REFUSE_CALL(SYS_bind),
    REFUSE_CALL(SYS_connect),
    /* what of its work the kernel does in a VMM's name goes past all filters of system calls */
    REFUSE_CALL(SYS_io_uring_setup),

    UNLESS_EQUAL(SYS_ioctl),
    ALLOW,
    LOAD(ARGUMENT(1)),
    ALLOW_REQUEST(TUNGETFEATURES),
    ALLOW_REQUEST(TUNGETIFF),
    ALLOW_REQUEST(TUNSETOFFLOAD),
    ALLOW_REQUEST(TUNSETSNDBUF),
    ALLOW_REQUEST(TUNGETVNETHDRSZ),
    ALLOW_REQUEST(TUNSETVNETHDRSZ),
    ALLOW_REQUEST(TUNSETVNETLE),
    ALLOW_REQUEST(TUNSETVNETBE),
    ALLOW_REQUEST(FIONBIO),
    ALLOW_REQUEST(FIONREAD),
    ALLOW_REQUEST(TCGETS), /* isatty(3) */
    /* what a guest may do to a block device of its own, and its sizes; not its partitions, SCSI commands,
       reservations */
    ALLOW_REQUEST(BLKROGET),
    ALLOW_REQUEST(BLKGETSIZE64),
    ALLOW_REQUEST(BLKSSZGET),
    ALLOW_REQUEST(BLKPBSZGET),
    ALLOW_REQUEST(BLKDISCARD),
    ALLOW_REQUEST(BLKZEROOUT),
    BPF_STMT(BPF_ALU | BPF_AND | BPF_K, TYPE_MASK),
    ALLOW_REQUEST(KVM_TYPE),
    REFUSE,
};

int install_filter(void)
{
    const struct sock_fprog program = {
        .len = sizeof(FILTER) / sizeof(FILTER[0]), .filter = (struct sock_filter *)FILTER, /* read only */
    };
    /* the unit has it set; without it the kernel takes no filter of a process without capabilities */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -1;
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}
