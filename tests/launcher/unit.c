// SPDX-License-Identifier: Apache-2.0
/* The launcher's parts in this process, and in children of it. */
#include "../expect.h"
#include "bootid.h"
#include "filter.h"
#include "ports.h"
#include "tap.h"
#include "words.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char BOOT[] = "0123456789abcdef0123456789abcdef";

static void words_end_with_the_boot_id(void)
{
    char line[WORDS_SIZE];
    EXPECT(compose_words(line, "quiet panic=1", BOOT) == NULL);
    EXPECT_TEXT(line, "quiet panic=1 hypeman.boot=0123456789abcdef0123456789abcdef");
}

static void an_id_is_32_lower_case_hex_digits(void)
{
    static const char *const WRONG[] = {
        "", "0123456789abcdef0123456789abcde", "0123456789abcdef0123456789abcdef0",
        "0123456789ABCDEF0123456789ABCDEF", "0123456789abcdef 123456789abcdef"};
    EXPECT(is_id(BOOT));
    EXPECT(!is_id(NULL));
    for (size_t i = 0; i < sizeof(WRONG) / sizeof(WRONG[0]); i++)
        EXPECT(!is_id(WRONG[i]));
}

static void each_boot_id_is_another(void)
{
    char first[ID_LENGTH + 1];
    char second[ID_LENGTH + 1];
    EXPECT(make_boot_id(first) == 0 && make_boot_id(second) == 0);
    EXPECT(is_id(first) && is_id(second));
    EXPECT(strcmp(first, second) != 0);
}

static void a_run_record_takes_the_place_of_the_one_before(void)
{
    static const char OTHER[] = "fedcba9876543210fedcba9876543210";
    char folder[] = "/tmp/hypemand-launcher.XXXXXX";
    char path[64];
    char text[128] = "";
    EXPECT(mkdtemp(folder) != NULL);
    EXPECT(keep_run_record(folder, BOOT, BOOT) == 0);
    EXPECT(keep_run_record(folder, BOOT, OTHER) == 0);
    (void)snprintf(path, sizeof(path), "%s/run", folder);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    EXPECT(fd >= 0 && read(fd, text, sizeof(text) - 1) == 66);
    EXPECT_TEXT(text, "0123456789abcdef0123456789abcdef fedcba9876543210fedcba9876543210\n");
    EXPECT(close(fd) == 0 && unlink(path) == 0);
    /* nothing else is left */
    EXPECT(rmdir(folder) == 0);
}

static void a_run_record_that_cannot_be_written_is_an_error(void)
{
    EXPECT(keep_run_record("/nowhere", BOOT, BOOT) < 0 && errno == ENOENT);
    static char longer[512];
    memset(longer, 'a', sizeof(longer) - 1);
    EXPECT(keep_run_record(longer, BOOT, BOOT) < 0 && errno == ENAMETOOLONG);
}

static void words_that_the_kernel_would_cut_are_refused(void)
{
    static char words[WORDS_SIZE];
    char line[WORDS_SIZE];
    const size_t most = WORDS_SIZE - 1 - strlen(" hypeman.boot=") - ID_LENGTH;
    memset(words, 'a', most);
    EXPECT(compose_words(line, words, BOOT) == NULL);
    words[most] = 'a';
    EXPECT(compose_words(line, words, BOOT) != NULL);
}

/* What tap_receive makes of a packet with `count` descriptors; what it says goes nowhere. */
static int receive(const char *packet, size_t length, int count)
{
    int pair[2];
    EXPECT(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    memset(&control, 0, sizeof(control));
    char text[1024];
    memcpy(text, packet, length);
    struct iovec part = {.iov_base = text, .iov_len = length};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        const int fds[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
        memcpy(CMSG_DATA(&control.align), fds, (size_t)count * sizeof(int));
    }
    if (length > 0)
        EXPECT(sendmsg(pair[1], &message, 0) == (ssize_t)length);
    EXPECT(close(pair[1]) == 0);
    int saved = dup(STDERR_FILENO);
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    EXPECT(dup2(null, STDERR_FILENO) >= 0);
    int fd = tap_receive(pair[0]);
    EXPECT(dup2(saved, STDERR_FILENO) >= 0);
    (void)close(saved);
    (void)close(null);
    return fd;
}

static int count_fds(void)
{
    int count = 0;
    for (int fd = 0; fd < 64; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static void a_device_is_taken_and_is_not_inherited_by_chance(void)
{
    int fd = receive("F", 1, 1);
    EXPECT(fd >= 0);
    EXPECT(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    EXPECT(close(fd) == 0);
}

static void an_answer_without_a_device_is_none_and_leaves_nothing_open(void)
{
    static const struct {
        const char *packet;
        size_t length;
        int count;
    } ANSWERS[] = {{"F", 1, 0},   {"E", 1, 0},  {"Eno such device", 15, 0},
                   {"Eno", 3, 1}, {"FF", 2, 1}, {"x", 1, 1},
                   {"\0", 1, 1},  {"", 0, 0},   {"x", 1, 8}};
    int before = count_fds();
    for (size_t i = 0; i < sizeof(ANSWERS) / sizeof(ANSWERS[0]); i++) {
        EXPECT(receive(ANSWERS[i].packet, ANSWERS[i].length, ANSWERS[i].count) == -1);
        EXPECT(count_fds() == before);
    }
}

static void more_devices_than_one_are_closed(void)
{
    int before = count_fds();
    int fd = receive("F", 1, 3);
    EXPECT(fd >= 0);
    EXPECT(count_fds() == before + 1);
    EXPECT(close(fd) == 0);
}

static void a_path_that_is_too_long_is_an_error(void)
{
    char path[300];
    memset(path, 'a', sizeof(path) - 1);
    path[sizeof(path) - 1] = '\0';
    EXPECT(connect_socket(path, SOCK_STREAM, 1) == -1);
    EXPECT(errno == ENAMETOOLONG);
}

/* In a child, since there is no way back. */
static void the_filter_refuses_and_kills_nobody(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        int open_before = open("/dev/null", O_RDWR | O_CLOEXEC);
        if (install_filter() != 0)
            _exit(10);
        if (mkdir("/tmp/made", 0700) == 0 || errno != EPERM)
            _exit(11);
        if (write(open_before, "x", 1) != 1)
            _exit(12);
        if (open("/dev/null", O_RDWR | O_CLOEXEC) < 0)
            _exit(13);
        /* one more filter, as QEMU's -sandbox installs */
        _exit(install_filter() == 0 ? 0 : 14);
    }
    int status = 0;
    EXPECT(waitpid(pid, &status, 0) == pid);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

int main(void)
{
    words_end_with_the_boot_id();
    an_id_is_32_lower_case_hex_digits();
    each_boot_id_is_another();
    a_run_record_takes_the_place_of_the_one_before();
    a_run_record_that_cannot_be_written_is_an_error();
    words_that_the_kernel_would_cut_are_refused();
    a_device_is_taken_and_is_not_inherited_by_chance();
    an_answer_without_a_device_is_none_and_leaves_nothing_open();
    more_devices_than_one_are_closed();
    a_path_that_is_too_long_is_an_error();
    the_filter_refuses_and_kills_nobody();
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
