// SPDX-License-Identifier: Apache-2.0
/* Mutated: an answer of the network service with some descriptors, and the words of a start. The first byte
 * is the number of descriptors and which of both. */
#include "tap.h"
#include "words.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 8

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void receive(const uint8_t *data, size_t size, size_t count)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0)
        abort();
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(MOST * sizeof(int))];
    } control;
    memset(&control, 0, sizeof(control));
    struct iovec part = {.iov_base = (void *)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (count > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        control.align.cmsg_level = SOL_SOCKET;
        control.align.cmsg_type = SCM_RIGHTS;
        control.align.cmsg_len = CMSG_LEN(count * sizeof(int));
    }
    (void)sendmsg(pair[1], &message, MSG_NOSIGNAL);
    (void)close(pair[1]);
    int fd = tap_receive(pair[0]);
    if ((fd >= 0) != (size == 1 && data[0] == 'F' && count > 0))
        abort();
    if (fd >= 0)
        (void)close(fd);
    /* the lowest free number is the same as before: nothing has stayed open */
    int next = dup(STDIN_FILENO);
    if (next != pair[0])
        abort();
    (void)close(next);
}

static void compose(const uint8_t *data, size_t size)
{
    char line[WORDS_SIZE];
    char *text = malloc(size + 2);
    if (text == NULL)
        abort();
    memcpy(text, data, size);
    text[size] = text[size + 1] = '\0';
    const char *boot = text + strlen(text) + 1;
    if (boot > text + size)
        boot = "0123456789abcdef0123456789abcdef";
    if (compose_words(line, text, boot) == NULL && strlen(line) >= WORDS_SIZE)
        abort();
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    if ((data[0] & 0x80) != 0)
        compose(data + 1, size - 1);
    else
        receive(data + 1, size - 1, data[0] % (MOST + 1));
    return 0;
}
