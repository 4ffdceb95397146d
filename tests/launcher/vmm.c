// SPDX-License-Identifier: Apache-2.0
/* A VMM that was taken over: tries what the launcher's filter refuses, and what it must not refuse, and says
 * of each how it ended, one line "NAME ERRNO" each; then its arguments, and what its descriptors are. It runs
 * in a folder of its own. Given `wait` it then waits to be ended. */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#define TAP 3
#define SECRETS 8
#define LAST 16
#define NR_OPENAT2 437
#define NR_FCHMODAT2 452

static void tell(const char *name, long result)
{
    printf("%s %d\n", name, result < 0 ? errno : 0);
}

static void make_files(void)
{
    const uint64_t how[3] = {O_RDWR | O_CREAT, 0600, 0};
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "made"};
    tell("open", syscall(SYS_open, "made", O_RDWR | O_CREAT, 0600));
    tell("openat", openat(AT_FDCWD, "made", O_RDWR | O_CREAT, 0600));
    tell("tmpfile", openat(AT_FDCWD, ".", O_RDWR | O_TMPFILE, 0600));
    tell("creat", syscall(SYS_creat, "made", 0600));
    tell("openat2", syscall(NR_OPENAT2, AT_FDCWD, "made", how, sizeof(how)));
    tell("mkdir", syscall(SYS_mkdir, "made", 0700));
    tell("mkdirat", mkdirat(AT_FDCWD, "made", 0700));
    tell("mknod", syscall(SYS_mknod, "made", S_IFIFO | 0600, 0));
    tell("mknodat", mknodat(AT_FDCWD, "made", S_IFIFO | 0600, 0));
    tell("link", syscall(SYS_link, "config", "made"));
    tell("linkat", linkat(AT_FDCWD, "config", AT_FDCWD, "made", 0));
    tell("symlink", syscall(SYS_symlink, "config", "made"));
    tell("symlinkat", symlinkat("config", AT_FDCWD, "made"));
    tell("rename", syscall(SYS_rename, "config", "made"));
    tell("renameat", renameat(AT_FDCWD, "config", AT_FDCWD, "made"));
    tell("renameat2", syscall(SYS_renameat2, AT_FDCWD, "config", AT_FDCWD, "made", 0));
    tell("chmod", syscall(SYS_chmod, "config", 0600));
    tell("fchmodat", syscall(SYS_fchmodat, AT_FDCWD, "config", 0600));
    tell("fchmodat2", syscall(NR_FCHMODAT2, AT_FDCWD, "config", 0600, 0));
    tell("setxattr", setxattr("config", "user.a", "b", 1, 0));
    tell("bind", bind(LAST - 1, (const struct sockaddr *)&address, sizeof(address)));
}

static void reach_others(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "qmp.sock"};
    int pair[2];
    char parameters[120] = {0};
    tell("socket", socket(AF_UNIX, SOCK_STREAM, 0));
    tell("socketpair", socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    tell("connect", connect(LAST - 1, (const struct sockaddr *)&address, sizeof(address)));
    tell("io_uring", syscall(SYS_io_uring_setup, 1, parameters));
}

static void request(const char *name, unsigned long number, void *argument)
{
    tell(name, ioctl(TAP, number, argument));
    /* the kernel looks at 32 bits of the number: so must the filter */
    char high[64];
    (void)snprintf(high, sizeof(high), "%s-high", name);
    tell(high, syscall(SYS_ioctl, TAP, (0xdead00000000UL | number), argument));
}

static void take_over_tap(void)
{
    struct ifreq device = {0};
    device.ifr_hwaddr.sa_family = 1;
    memcpy(device.ifr_hwaddr.sa_data, "\x52\x54\0\0\0\2", 6);
    struct sock_fprog filter = {0};
    int off = 0;
    request("SIOCSIFHWADDR", 0x8924, &device);
    request("TUNSETIFF", TUNSETIFF, &device);
    request("TUNSETOWNER", TUNSETOWNER, NULL);
    request("TUNSETGROUP", TUNSETGROUP, NULL);
    request("TUNSETPERSIST", TUNSETPERSIST, NULL);
    request("TUNSETLINK", TUNSETLINK, (void *)1);
    request("TUNSETDEBUG", TUNSETDEBUG, (void *)1);
    request("TUNSETCARRIER", TUNSETCARRIER, &off);
    request("TUNSETTXFILTER", TUNSETTXFILTER, &filter);
    request("TUNATTACHFILTER", TUNATTACHFILTER, &filter);
    request("TUNSETQUEUE", TUNSETQUEUE, &device);
    request("TUNGETDEVNETNS", _IO('T', 227), NULL);
    request("TIOCSTI", TIOCSTI, &device);
}

/* Refused by what the descriptor is, if it is no TAP device: ENOTTY; but not by the filter. */
static void use_tap(void)
{
    struct ifreq device = {0};
    unsigned int features = 0;
    int size = 0;
    request("TUNGETFEATURES", TUNGETFEATURES, &features);
    request("TUNGETIFF", TUNGETIFF, &device);
    request("TUNGETVNETHDRSZ", TUNGETVNETHDRSZ, &size);
    if (size > 0)
        request("TUNSETVNETHDRSZ", TUNSETVNETHDRSZ, &size);
    request("TUNSETOFFLOAD", TUNSETOFFLOAD, NULL);
    request("KVM_CREATE_VM", KVM_CREATE_VM, NULL);
    printf("device %.15s %d\n", device.ifr_name, (device.ifr_flags & IFF_VNET_HDR) != 0);
}

/* The same of a block device. */
static void use_disk(void)
{
    uint64_t range[2] = {0};
    int number = 0;
    request("BLKROGET", BLKROGET, &number);
    request("BLKGETSIZE64", BLKGETSIZE64, range);
    request("BLKSSZGET", BLKSSZGET, &number);
    request("BLKPBSZGET", BLKPBSZGET, &number);
    request("BLKDISCARD", BLKDISCARD, range);
    request("BLKZEROOUT", BLKZEROOUT, range);
}

static void take_over_disk(void)
{
    char argument[128] = {0};
    request("BLKRRPART", BLKRRPART, NULL);
    request("BLKPG", 0x1269, argument);
    request("SG_IO", 0x2285, argument);
    request("IOC_PR_PREEMPT", 0x401870cb, argument);
}

/* The leader may do what the VMM may not: is it out of reach? */
static void enter_leader(void)
{
    char path[64] = "";
    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    FILE *children = fopen(path, "re");
    int leader = 0;
    if (children != NULL && fscanf(children, "%d", &leader) == 1) {
        (void)snprintf(path, sizeof(path), "/proc/%d/mem", leader);
        tell("leader-memory", open(path, O_RDWR | O_CLOEXEC));
    }
    if (children != NULL)
        (void)fclose(children);
}

static int is_listening(int fd)
{
    int listening = 0;
    socklen_t size = sizeof(listening);
    (void)getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size);
    return listening;
}

static void show_start(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        printf("argument %s\n", argv[i]);
    if (getenv("LD_PRELOAD") != NULL)
        printf("preload %s %s\n", getenv("LD_PRELOAD"), getenv("HYPEMAN_MEMORY"));
    for (int fd = 3; fd < 64; fd++) {
        struct sockaddr_un address = {0};
        socklen_t length = sizeof(address);
        if (fd == LAST - 1 || fcntl(fd, F_GETFD) < 0)
            continue;
        if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
            printf("fd %d file\n", fd);
        else
            printf("fd %d %s %d %d\n", fd, address.sun_path, is_listening(fd), listen(fd, 1));
    }
    char disk[4096];
    ssize_t size = read(SECRETS, disk, sizeof(disk));
    for (ssize_t i = 0; i < size; i++)
        printf("%s%02x%s", i == 0 ? "secrets " : "", (unsigned char)disk[i], i == size - 1 ? "\n" : "");
    if (size >= 0)
        tell("secrets-write", write(SECRETS, "x", 1));
    sigset_t blocked;
    (void)sigprocmask(SIG_SETMASK, NULL, &blocked);
    printf("blocked %d\n", sigismember(&blocked, 38));
}

int main(int argc, char **argv)
{
    /* a socket that it has, to try what is refused on */
    (void)dup2(4, LAST - 1);
    show_start(argc, argv);
    make_files();
    reach_others();
    take_over_tap();
    use_tap();
    use_disk();
    take_over_disk();
    enter_leader();
    tell("read", openat(AT_FDCWD, "config", O_RDONLY));
    tell("write", openat(AT_FDCWD, "disk", O_RDWR));
    tell("directory", openat(AT_FDCWD, ".", O_RDONLY | O_DIRECTORY));
    printf("done 0\n");
    (void)fflush(stdout);
    if (argc > 1 && strcmp(argv[1], "wait") == 0)
        for (;;)
            (void)pause();
    return 0;
}
