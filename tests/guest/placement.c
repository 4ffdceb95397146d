// SPDX-License-Identifier: Apache-2.0
/* What stands on a files disk, whole and damaged, and what becomes of it. */
#include "placement.h"
#include "../expect.h"
#include "bytes.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ROOM = 512 };

struct body {
    char bytes[ROOM];
    size_t size;
};

static void add(struct body *body, const char *fields, const char *content)
{
    char *at = body->bytes + body->size;
    put_le32(at, (uint32_t)strlen(fields) + 1);
    put_le32(at + 4, (uint32_t)strlen(content));
    memcpy(at + 8, fields, strlen(fields) + 1);
    memcpy(at + 8 + strlen(fields) + 1, content, strlen(content));
    body->size += 8 + strlen(fields) + 1 + strlen(content);
}

/* Of an allocation of exactly that size, so that one byte too many is seen. */
static bool write_secrets(const struct body *body, size_t size, uint32_t count, const struct secrets *secrets,
                          int folder, struct reason *why)
{
    char *copy = malloc(size + (size == 0));
    if (copy == NULL)
        abort();
    memcpy(copy, body->bytes, size);
    bool written = secrets_write(copy, size, count, secrets, folder, why);
    free(copy);
    return written;
}

static bool holds(int folder, const char *name, const char *text, mode_t mode, uid_t uid, gid_t gid)
{
    char found[64] = "";
    struct stat status;
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool same = fd >= 0 && fstat(fd, &status) == 0 && read(fd, found, sizeof found - 1) >= 0 &&
                strcmp(found, text) == 0 && (status.st_mode & 07777) == mode && status.st_uid == uid &&
                status.st_gid == gid;
    (void)close(fd);
    return same;
}

static void test_secrets(int folder)
{
    struct secret known[] = {{"key", "7:8", 0440}, {"other", NULL, 0400}};
    const struct secrets secrets = {known, 2};
    struct body body = {.size = 0};
    struct reason why = {""};
    add(&body, "name=key", "of the key");
    add(&body, "name=not asked for", "x");
    add(&body, "name=other,mode=0777,owner=1", "");
    EXPECT(write_secrets(&body, body.size, 3, &secrets, folder, &why));
    EXPECT(holds(folder, "key", "of the key", 0440, 7, 8) && holds(folder, "other", "", 0400, 0, 0));
    EXPECT(faccessat(folder, "not asked for", F_OK, 0) != 0);
    EXPECT(!write_secrets(&body, body.size, 2, &secrets, folder, &why));
    EXPECT(strstr(why.words, "more on it") != NULL);
    const struct secrets more = {(struct secret[]){{"absent", NULL, 0400}}, 1};
    EXPECT(!write_secrets(&body, body.size, 3, &more, folder, &why));
    EXPECT(strstr(why.words, "0 of 1") != NULL);
    known[0].owner = "nobody-of-this-name";
    EXPECT(!write_secrets(&body, body.size, 3, &secrets, folder, &why));
    EXPECT(strstr(why.words, "nobody-of-this-name") != NULL);
}

/* Each cut and each length that lies is refused with words, and nothing beyond the body is read. */
static void test_damage(int folder)
{
    const struct secrets secrets = {(struct secret[]){{"key", NULL, 0400}}, 1};
    struct body body = {.size = 0};
    struct reason why;
    add(&body, "name=key", "content");
    for (size_t size = 0; size < body.size; size++) {
        why.words[0] = '\0';
        EXPECT(!write_secrets(&body, size, 1, &secrets, folder, &why) && why.words[0] != '\0');
    }
    static const uint32_t lies[] = {0, 1, 8, 10, 1U << 20, 0x7fffffff, 0xfffffff0, 0xffffffff};
    for (size_t at = 0; at <= 4; at += 4) {
        for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
            struct body lying = body;
            put_le32(lying.bytes + at, lies[i]);
            why.words[0] = '\0';
            EXPECT(!write_secrets(&lying, lying.size, 1, &secrets, folder, &why) && why.words[0] != '\0');
        }
    }
}

static void test_paths(void)
{
    static const char *const wrong[] = {"mode=0644",
                                        "path=",
                                        "path=/",
                                        "path=etc/x",
                                        "path=/a/../b",
                                        "path=/a//b",
                                        "path=/a/",
                                        "path=/a,mode=9",
                                        "path=/a,mode=",
                                        "path=/a,mode=1x",
                                        "path=/a,mode=07777777",
                                        "path"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct body body = {.size = 0};
        struct reason why = {""};
        add(&body, wrong[i], "x");
        EXPECT(!files_write(body.bytes, body.size, 1, &why) && why.words[0] != '\0');
    }
}

static void test_files(const char *folder)
{
    char fields[128];
    char path[128];
    struct body body = {.size = 0};
    struct reason why = {""};
    (void)snprintf(path, sizeof path, "%s/link", folder);
    EXPECT(symlink("/dev/null", path) == 0);
    (void)snprintf(fields, sizeof fields, "path=%s/new/deep/a%%2Cb,mode=4755,owner=3:4", folder);
    add(&body, fields, "text\n");
    (void)snprintf(fields, sizeof fields, "path=%s/link", folder);
    add(&body, fields, "in its place");
    EXPECT(files_write(body.bytes, body.size, 2, &why));
    (void)snprintf(path, sizeof path, "%s/new/deep/a,b", folder);
    EXPECT(holds(AT_FDCWD, path, "text\n", 04755, 3, 4));
    (void)snprintf(path, sizeof path, "%s/link", folder);
    EXPECT(holds(AT_FDCWD, path, "in its place", 0644, 0, 0));
    body.size = 0;
    (void)snprintf(fields, sizeof fields, "path=%s/new/deep", folder);
    add(&body, fields, "a folder is in its place");
    EXPECT(!files_write(body.bytes, body.size, 1, &why) && strstr(why.words, "Is a directory") != NULL);
}

static void test_records(void)
{
    char right[] = "name=key,mode=0440,owner=app:app";
    struct secret secret;
    struct reason why;
    EXPECT(secret_parse(right, &secret, &why) && secret.mode == 0440 && secret.owner != NULL);
    EXPECT_TEXT(secret.name, "key");
    EXPECT_TEXT(secret.owner, "app:app");
    static const char *const wrong[] = {"mode=0400", "name=",         "name=a/b", "name=.",
                                        "name=..",   "name=a,mode=8", "a"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char value[64];
        (void)snprintf(value, sizeof value, "%s", wrong[i]);
        EXPECT(!secret_parse(value, &secret, &why));
    }
}

int main(void)
{
    char folder[] = "/tmp/hypeman-placement.XXXXXX";
    if (mkdtemp(folder) == NULL)
        return 1;
    int opened = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    test_secrets(opened);
    test_damage(opened);
    test_paths();
    test_files(folder);
    test_records();
    (void)close(opened);
    char command[64];
    (void)snprintf(command, sizeof command, "rm -r %s", folder);
    if (system(command) != 0)
        return 1;
    (void)fprintf(stderr, failures == 0 ? "placement: all as it should be\n" : "placement: failed\n");
    return failures == 0 ? 0 : 1;
}
