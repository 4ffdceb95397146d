// SPDX-License-Identifier: Apache-2.0
/* What the guest side parses, formats and looks up, against tables. Exits 1 if anything is not as it should
 * be. */
#include "bootid.h"
#include "box.h"
#include "config.h"
#include "crc32.h"
#include "environment.h"
#include "files.h"
#include "identity.h"
#include "kernellog.h"
#include "ports.h"
#include "records.h"
#include "sentinel.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int failures;

#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            (void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                    \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

static void expect_text(const char *got, const char *wanted, int line)
{
    if (strcmp(got, wanted) == 0)
        return;
    (void)fprintf(stderr, "%s:%d: \"%s\" instead of \"%s\"\n", __FILE__, line, got, wanted);
    failures++;
}
#define EXPECT_TEXT(got, wanted) expect_text(got, wanted, __LINE__)

static const char boot[] = "0123456789abcdef0123456789abcdef";

/* An allocation of exactly the size, so that the sanitizer sees a byte too much. */
static char *exactly(const char *bytes, size_t size)
{
    char *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL)
        abort();
    memcpy(copy, bytes, size);
    return copy;
}

static void test_records(void)
{
    static const struct {
        const char *bytes;
        size_t size;
        bool valid;
    } cases[] = {
        {"", 0, true},         {"a=b", 4, true},          {"a=", 3, true},
        {"a=b=c", 6, true},    {"a=b", 3, false},         {"ab", 3, false},
        {"=b", 3, false},      {"A=b", 4, false},         {"1a=b", 5, false},
        {"a1_=b", 6, true},    {"a-b=c", 6, false},       {"", 1, false},
        {"a=b\0c=d", 8, true}, {"a=b\0c", 6, false},      {"a=b\0c=d", 7, false},
        {"_a=b", 5, false},    {"a=\xff\x01\n", 6, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *bytes = exactly(cases[i].bytes, cases[i].size);
        if (records_valid(bytes, cases[i].size) != cases[i].valid) {
            (void)fprintf(stderr, "records case %zu\n", i);
            failures++;
        }
        free(bytes);
    }
    static const char many[] = "arg=sh\0env=A=1\0arg=\0arg=x=y";
    size_t offset = 0;
    struct record record;
    EXPECT(records_count(many, sizeof many, "arg") == 3 && records_count(many, sizeof many, "ar") == 0);
    EXPECT(records_next(many, sizeof many, &offset, &record) && record_is(&record, "arg"));
    EXPECT(records_next(many, sizeof many, &offset, &record) && record_is(&record, "env"));
    EXPECT_TEXT(record.value, "A=1");
    EXPECT(records_next(many, sizeof many, &offset, &record));
    EXPECT_TEXT(record.value, "");
    EXPECT(records_next(many, sizeof many, &offset, &record));
    EXPECT_TEXT(record.value, "x=y");
    EXPECT(!records_next(many, sizeof many, &offset, &record));

    char buffer[8];
    size_t used = 0;
    EXPECT(!records_put(buffer, sizeof buffer, &used, "key", "12345") && used == 0);
    EXPECT(records_put(buffer, sizeof buffer, &used, "key", "123") && used == 8);
    EXPECT(!records_put(buffer, sizeof buffer, &used, "k", "") && records_valid(buffer, used));
}

static void test_numbers(void)
{
    unsigned long number = 99;
    EXPECT(parse_number("0", 0, &number) && number == 0);
    EXPECT(parse_number("255", 255, &number) && number == 255);
    EXPECT(!parse_number("256", 255, &number) && !parse_number("2550", 255, &number));
    EXPECT(!parse_number("", 9, &number) && !parse_number("-1", 9, &number) &&
           !parse_number(" 1", 9, &number));
    EXPECT(!parse_number("1x", 9, &number) && !parse_number("5", 3, &number));
    EXPECT(!parse_number("99999999999999999999999999", 1000000, &number));
}

static void test_crc32(void)
{
    EXPECT(crc32_ieee("", 0) == 0);
    EXPECT(crc32_ieee("123456789", 9) == 0xcbf43926);
}

static void test_sentinels(void)
{
    char line[SENTINEL_LINE_MAX];
    struct timespec now = {.tv_sec = 1700000000, .tv_nsec = 42};
    size_t length = sentinel_program_start(line, now, "exec", boot);
    EXPECT(length == strlen(line));
    EXPECT_TEXT(line, "HYPEMAN-PROGRAM-START ts=2023-11-14T22:13:20.000000042Z mode=exec "
                      "boot=0123456789abcdef0123456789abcdef\n");
    (void)sentinel_agent_ready(line, now, boot);
    EXPECT_TEXT(
        line,
        "HYPEMAN-AGENT-READY ts=2023-11-14T22:13:20.000000042Z boot=0123456789abcdef0123456789abcdef\n");
    (void)sentinel_stage(line, "root", (struct timespec){1, 2000}, (struct timespec){12, 999999999}, boot);
    EXPECT_TEXT(
        line, "HYPEMAN-STAGE name=root start=1.000002 end=12.999999 boot=0123456789abcdef0123456789abcdef\n");
    (void)sentinel_exit(line, 127, "a \"b\" \\ c\nd\x7f\x1b \xc3\xa4", boot);
    EXPECT_TEXT(line, "HYPEMAN-EXIT code=127 message=\"a \\\"b\\\" \\\\ c?d?? \xc3\xa4\" "
                      "boot=0123456789abcdef0123456789abcdef\n");

    char message[SENTINEL_MESSAGE_MAX + 20];
    memset(message, '"', sizeof message - 1);
    message[sizeof message - 1] = '\0';
    length = sentinel_exit(line, 1, message, boot);
    EXPECT(length == strlen(line) && line[length - 1] == '\n' && strstr(line, "\" boot=0123") != NULL);
    EXPECT(length ==
           strlen("HYPEMAN-EXIT code=1 message=\"\" boot=\n") + 2 * SENTINEL_MESSAGE_MAX + BOOT_ID_LENGTH);
    /* A character of two bytes across the limit goes as a whole. */
    memset(message, 'x', sizeof message - 1);
    memcpy(message + SENTINEL_MESSAGE_MAX - 1, "\xc3\xa4", 2);
    (void)sentinel_exit(line, 1, message, boot);
    EXPECT(strstr(line, "x\" boot=") != NULL && strchr(line, '\xc3') == NULL);
}

static void test_boot_id(void)
{
    char id[BOOT_ID_LENGTH + 1];
    EXPECT(boot_id_parse("console=hvc0 hypeman.boot=0123456789abcdef0123456789abcdef quiet\n", id));
    EXPECT_TEXT(id, boot);
    EXPECT(boot_id_parse("hypeman.boot=0123456789abcdef0123456789abcdef\n", id));
    EXPECT(!boot_id_parse("", id) && !boot_id_parse("   ", id) && !boot_id_parse("hypeman.boot=", id));
    EXPECT(!boot_id_parse("hypeman.boot=0123456789abcdef0123456789abcde", id));
    EXPECT(!boot_id_parse("hypeman.boot=0123456789abcdef0123456789abcdef0", id));
    EXPECT(!boot_id_parse("hypeman.boot=0123456789ABCDEF0123456789abcdef", id));
    EXPECT(!boot_id_parse("xhypeman.boot=0123456789abcdef0123456789abcdef", id));
}

static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\nbroken\nbad:x:y:1::/:\n"
                             "app:x:500:501:App:/srv/app:/bin/sh\n1000:x:42:42::/numeric:\nlast:x:7:8::";
static const char group[] = "root:x:0:\nstaff:x:60:app,other\nown:x:501:app\nnotapp:x:61:apple,xapp\n"
                            "tail:x:62:other,app";

static void test_identity(void)
{
    struct identity who;
    struct reason why;
    EXPECT(identity_parse(NULL, passwd, group, &who, &why) && who.uid == 0 && who.gid == 0);
    EXPECT_TEXT(who.home, "/root");
    EXPECT(identity_parse("", "", "", &who, &why) && who.uid == 0);
    EXPECT_TEXT(who.home, "/");
    EXPECT(identity_parse("app", passwd, group, &who, &why) && who.uid == 500 && who.gid == 501);
    EXPECT(who.group_count == 2 && who.groups[0] == 60 && who.groups[1] == 62);
    EXPECT_TEXT(who.home, "/srv/app");
    EXPECT(identity_parse("500", passwd, group, &who, &why) && who.gid == 501 && who.group_count == 2);
    EXPECT(identity_parse("app:staff", passwd, group, &who, &why) && who.gid == 60 && who.group_count == 0);
    EXPECT(identity_parse("77:88", passwd, group, &who, &why) && who.uid == 77 && who.gid == 88);
    EXPECT_TEXT(who.home, "/");
    EXPECT(identity_parse("77", passwd, group, &who, &why) && who.gid == 0 && who.group_count == 0);
    EXPECT(identity_parse("1000", passwd, group, &who, &why) && who.uid == 42); /* A name before a number. */
    EXPECT(identity_parse("last", passwd, group, &who, &why) && who.uid == 7);
    static const char *const wrong[] = {"nobody", ":1",         "app:nogroup", "bad",
                                        "-1",     "4294967295", "app:",        "broken"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        EXPECT(!identity_parse(wrong[i], passwd, group, &who, &why) && why.words[0] != '\0');
    EXPECT(!identity_parse("nobody", passwd, group, &who, &why));
    EXPECT_TEXT(why.words, "user \"nobody\" is not in the image's /etc/passwd");
}

static void test_environment(void)
{
    static char a[] = "A=1";
    static char path[] = "PATH=/x";
    static char home[] = "HOME=/h";
    static char pathology[] = "PATHOLOGY=1";
    char store[32];
    char *bare[] = {a, pathology, NULL};
    char **built = environment_build(bare, "/root", store, sizeof store);
    EXPECT_TEXT(environment_get(built, "PATH"), DEFAULT_PATH);
    EXPECT_TEXT(environment_get(built, "HOME"), "/root");
    EXPECT(built[0] == a && built[4] == NULL);
    free(built);
    char *full[] = {path, a, home, NULL};
    built = environment_build(full, "/root", store, sizeof store);
    EXPECT(built[0] == path && built[1] == a && built[2] == home && built[3] == NULL);
    free(built);
    EXPECT(environment_valid("A=") && environment_valid("A=b=c") && !environment_valid("A") &&
           !environment_valid("=b"));
}

static void test_frames(void)
{
    uint8_t bytes[FRAME_HEADER_SIZE];
    struct frame_header header = {.length = 65536, .stream = 0x01020304, .type = FRAME_DATA, .channel = 2};
    struct frame_header got;
    frame_header_put(bytes, header);
    EXPECT(memcmp(bytes, "\x00\x00\x01\x00\x04\x03\x02\x01\x07\x02\x00\x00", sizeof bytes) == 0);
    EXPECT(frame_header_get(bytes, &got) && got.length == 65536 && got.stream == 0x01020304);
    EXPECT(got.type == FRAME_DATA && got.channel == 2);
    bytes[0] = 1;
    EXPECT(!frame_header_get(bytes, &got));
    frame_header_put(bytes, header);
    bytes[9] = 3;
    EXPECT(!frame_header_get(bytes, &got));
    frame_header_put(bytes, header);
    bytes[11] = 1;
    EXPECT(!frame_header_get(bytes, &got));
}

static void test_boxes(void)
{
    static struct outbox out;
    static struct inbox in;
    int ends[2];
    EXPECT(pipe2(ends, O_NONBLOCK) == 0);
    EXPECT(outbox_room(&out) == OUTBOX_SIZE - FRAME_HEADER_SIZE);
    outbox_put(&out, (struct frame_header){.length = 3, .type = FRAME_PING}, "abc");
    outbox_put(&out, (struct frame_header){.length = 0, .type = FRAME_CLOSE, .stream = 5}, NULL);
    EXPECT(outbox_flush(&out, ends[1]) && out.start == out.end && !outbox_flush(&out, ends[1]));
    struct frame_header header;
    EXPECT(inbox_fill(&in, ends[0]) && inbox_frame(&in, &header) == INBOX_PARTIAL);
    EXPECT(inbox_fill(&in, ends[0]) && inbox_frame(&in, &header) == INBOX_FRAME && header.length == 3);
    EXPECT(memcmp(in.bytes + FRAME_HEADER_SIZE, "abc", 3) == 0);
    inbox_drop(&in);
    EXPECT(inbox_fill(&in, ends[0]) && inbox_frame(&in, &header) == INBOX_FRAME && header.stream == 5);
    inbox_drop(&in);
    EXPECT(!inbox_fill(&in, ends[0]) && errno == EAGAIN);
    (void)close(ends[1]);
    EXPECT(!inbox_fill(&in, ends[0]) && errno == 0);
    (void)close(ends[0]);
}

/* The stop line of a whole text: its grace, or -1. */
static int stop_order(const char *text)
{
    struct stop_line line = {.used = 0};
    unsigned grace;
    int order = -1;
    for (; *text != '\0'; text++) {
        if (stop_line_add(&line, *text, &grace))
            order = (int)grace;
    }
    return order;
}

static void test_stop_line(void)
{
    EXPECT(stop_order("poweroff 10\n") == 10 && stop_order("poweroff 0\n") == 0);
    EXPECT(stop_order("junk\npoweroff 7\n") == 7);
    EXPECT(stop_order("poweroff 10") == -1 && stop_order("poweroff\n") == -1 &&
           stop_order("poweroff -1\n") == -1);
    EXPECT(stop_order("poweroff 86401\n") == -1 && stop_order("reboot 1\n") == -1);
    EXPECT(stop_order("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxpoweroff 3\n") == -1);
    EXPECT(stop_order("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\npoweroff 3\n") == 3);
}

static void test_kernel_log(void)
{
    EXPECT(kernel_log_oom_victim("3,512,123,-;Out of memory: Killed process 41 (tail) total-vm:1kB\n") == 41);
    EXPECT(kernel_log_oom_victim("3,5,1,-;Memory cgroup out of memory: Killed process 7 (x)\n") == 7);
    EXPECT(kernel_log_oom_victim("11,5,1,-;Out of memory: Killed process 7 (x)\n") ==
           0); /* From user space. */
    EXPECT(kernel_log_oom_victim("3,5,1,-;Killed process 7 (x)\n") == 0);
    EXPECT(kernel_log_oom_victim("6,5,1,-;virtio_blk virtio1\n") == 0 && kernel_log_oom_victim("") == 0);
    EXPECT(kernel_log_oom_victim("3,5,1,-;Out of memory: Killed process x\n") == 0);
}

static void test_exit_words(void)
{
    struct reason words;
    char text[24];
    exit_words(3 << 8, &words);
    EXPECT_TEXT(words.words, "exited with code 3");
    EXPECT(exit_code(3 << 8) == 3 && exit_code(15) == 143);
    exit_words(15, &words);
    EXPECT_TEXT(words.words, "killed by signal 15 (TERM)");
    EXPECT_TEXT(signal_name(34, text), "signal 34");
}

static bool parse_config(const char *records, size_t size, struct config *config, struct reason *why)
{
    return config_parse(exactly(records, size), size, config, why);
}

#define FIXED "version=1\0name=vm1\0agent=1\0headers=0\0"

static void test_config(void)
{
    struct config config;
    struct reason why;
    static const char whole[] =
        FIXED "mode=exec\0arg=sh\0arg=-c\0env=A=1\0workdir=/w\0user=app\0stop_signal=2\0new=1";
    EXPECT(parse_config(whole, sizeof whole, &config, &why));
    EXPECT(config.agent && !config.headers && config.mode == MODE_EXEC && config.stop_signal == 2);
    EXPECT_TEXT(config.argv[1], "-c");
    EXPECT(config.argv[2] == NULL && config.environment[1] == NULL);
    EXPECT_TEXT(config.environment[0], "A=1");
    EXPECT_TEXT(config.folder, "/w");
    config_free(&config);
    static const char least[] = FIXED "mode=systemd\0arg=/sbin/init";
    EXPECT(parse_config(least, sizeof least, &config, &why) && config.mode == MODE_SYSTEMD);
    EXPECT(config.stop_signal == 15 && config.user == NULL);
    EXPECT_TEXT(config.folder, "/");
    config_free(&config);
    static const struct {
        const char *records;
        size_t size;
        const char *words;
    } wrong[] = {
#define WRONG(records, words) {records, sizeof records, words}
        WRONG(FIXED "mode=exec", "\"arg\" is missing"),
        WRONG(FIXED "arg=x", "\"mode\" is missing"),
        WRONG(FIXED "mode=other\0arg=x", "mode=other"),
        WRONG(FIXED "mode=exec\0arg=x\0name=y", "\"name\" stands there 2 times"),
        WRONG("version=2\0name=vm1\0agent=1\0headers=0\0mode=exec\0arg=x", "version 2"),
        WRONG("version=1\0name=vm1\0agent=yes\0headers=0\0mode=exec\0arg=x", "agent=yes"),
        WRONG(FIXED "mode=exec\0arg=x\0workdir=rel", "workdir=rel"),
        WRONG(FIXED "mode=exec\0arg=x\0stop_signal=0", "stop_signal=0"),
        WRONG(FIXED "mode=exec\0arg=x\0stop_signal=65", "stop_signal=65"),
        WRONG(FIXED "mode=exec\0arg=x\0env=NOVALUE", "env=NOVALUE"),
        WRONG("version", "cannot be read"),
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        EXPECT(!parse_config(wrong[i].records, wrong[i].size, &config, &why));
        EXPECT(strstr(why.words, wrong[i].words) != NULL);
        config_free(&config);
    }
}

static void test_config_disk(void)
{
    static const uint8_t header[] = "HYPECFG1\x04\0\0\0";
    char path[] = "/tmp/hypeman-unit-XXXXXX";
    uint8_t disk[512] = {0};
    struct config config;
    struct reason why;
    int fd = mkstemp(path);
    EXPECT(fd >= 0);
    memcpy(disk, header, 12);
    static const struct {
        size_t size;
        const char *words;
    } cases[] = {{8, "cannot be read"}, {18, "records cannot be read"}, {512, "checksum"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        EXPECT(ftruncate(fd, 0) == 0 && pwrite(fd, disk, cases[i].size, 0) == (ssize_t)cases[i].size);
        EXPECT(!config_read(path, &config, &why) && strstr(why.words, cases[i].words) != NULL);
        config_free(&config);
    }
    memcpy(disk + 8, "\x01\x00\x10\x00", 4); /* One more than the most. */
    EXPECT(pwrite(fd, disk, sizeof disk, 0) == sizeof disk);
    EXPECT(!config_read(path, &config, &why) && strstr(why.words, "does not begin") != NULL);
    (void)close(fd);
    (void)unlink(path);
    EXPECT(!config_read(path, &config, &why) && strstr(why.words, "cannot open") != NULL);
}

static void test_folders(void)
{
    char base[] = "/tmp/hypeman-unit-XXXXXX";
    char path[64];
    char file[64];
    EXPECT(mkdtemp(base) != NULL);
    (void)snprintf(path, sizeof path, "%s/a/b", base);
    EXPECT(folder_make(path, 0755) && folder_make(path, 0755) && access(path, F_OK) == 0);
    (void)snprintf(file, sizeof file, "%s/f", base);
    EXPECT(file_write(file, O_CREAT, "text") && !folder_make(file, 0755) && errno == ENOTDIR);
    char *text = file_load(file, 4);
    EXPECT(text != NULL && strcmp(text, "text") == 0);
    free(text);
    EXPECT(file_load(file, 3) == NULL && errno == EFBIG);
    EXPECT(file_load(base, 10) == NULL && file_load("/nothing", 10) == NULL && errno == ENOENT);
    (void)unlink(file);
    (void)rmdir(path);
    (void)snprintf(path, sizeof path, "%s/a", base);
    (void)rmdir(path);
    EXPECT(rmdir(base) == 0);
}

int main(void)
{
    test_records();
    test_numbers();
    test_crc32();
    test_sentinels();
    test_boot_id();
    test_identity();
    test_environment();
    test_frames();
    test_boxes();
    test_stop_line();
    test_kernel_log();
    test_exit_words();
    test_config();
    test_config_disk();
    test_folders();
    (void)fprintf(stderr, failures == 0 ? "unit: all as it should be\n" : "unit: failed\n");
    return failures == 0 ? 0 : 1;
}
