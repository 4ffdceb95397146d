// SPDX-License-Identifier: Apache-2.0
/* What the guest side parses, formats and looks up, against tables. Exits 1 if
 * anything is not as it should be. */
#include "../expect.h"
#include "agentprocess.h"
#include "atonce.h"
#include "bootid.h"
#include "box.h"
#include "bytes.h"
#include "config.h"
#include "crc32.h"
#include "environment.h"
#include "fields.h"
#include "files.h"
#include "firstuse.h"
#include "growth.h"
#include "headers.h"
#include "hosts.h"
#include "identity.h"
#include "inroot.h"
#include "kernellog.h"
#include "laststage.h"
#include "machineid.h"
#include "ports.h"
#include "records.h"
#include "report.h"
#include "sentinel.h"
#include "settings.h"
#include "signalsets.h"
#include "spawn.h"
#include "stages.h"
#include "thaw.h"
#include "tmpfs.h"
#include "trees.h"
#include "unitfiles.h"
#include "warmstart.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char boot[] = "0123456789abcdef0123456789abcdef";

/* An allocation of exactly the size, so that the sanitizer sees a byte too
 * much. */
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
    EXPECT_TEXT(line, "HYPEMAN-AGENT-READY ts=2023-11-14T22:13:20.000000042Z "
                      "boot=0123456789abcdef0123456789abcdef\n");
    (void)sentinel_stage(line, "root", (struct timespec){1, 2000}, (struct timespec){12, 999999999}, boot);
    EXPECT_TEXT(line, "HYPEMAN-STAGE name=root start=1.000002 end=12.999999 "
                      "boot=0123456789abcdef0123456789abcdef\n");
    (void)sentinel_exit(line, 127, "a \"b\" \\ c\nd\x7f\x1b \xc3\xa4", boot);
    EXPECT_TEXT(line, "HYPEMAN-EXIT code=127 message=\"a \\\"b\\\" \\\\ c?d?? \xc3\xa4\" "
                      "boot=0123456789abcdef0123456789abcdef\n");

    (void)sentinel_headers_start(line, now, boot);
    EXPECT_TEXT(line, "HYPEMAN-HEADERS-START ts=2023-11-14T22:13:20.000000042Z "
                      "boot=0123456789abcdef0123456789abcdef\n");
    (void)sentinel_headers_ready(line, now, boot);
    EXPECT_TEXT(line, "HYPEMAN-HEADERS-READY ts=2023-11-14T22:13:20.000000042Z "
                      "boot=0123456789abcdef0123456789abcdef\n");
    (void)sentinel_headers_failed(line, now, "no \"disk\"\n", boot);
    EXPECT_TEXT(line, "HYPEMAN-HEADERS-FAILED ts=2023-11-14T22:13:20.000000042Z "
                      "boot=0123456789abcdef0123456789abcdef error=\"no \\\"disk\\\"?\"\n");

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

static void test_emergency(void)
{
    char line[SENTINEL_LINE_MAX];
    struct timespec now = {.tv_sec = 1700000000, .tv_nsec = 42};
    (void)sentinel_emergency(line, now, "entered", boot);
    EXPECT_TEXT(line, "HYPEMAN-EMERGENCY ts=2023-11-14T22:13:20.000000042Z state=entered "
                      "boot=0123456789abcdef0123456789abcdef\n");
}

static void test_environment_file(void)
{
    static const struct {
        const char *variable;
        const char *line;
    } cases[] = {
        {"A=b", "A=\"b\"\n"},
        {"A=", "A=\"\"\n"},
        {"A_1= b  c ", "A_1=\" b  c \"\n"},
        {"A=1\n#2\n", "A=\"1\n#2\n\"\n"},
        {"A=\"'\\$`=", "A=\"\\\"'\\\\\\$\\`=\"\n"},
        {"#A=b", ""},
        {"1A=b", ""},
        {"A.B=c", ""},
        {"=b", ""},
        {"A", ""},
        {"A\nB=c", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *line = environment_file_line(cases[i].variable);
        EXPECT_TEXT(line == NULL ? "(no memory)" : line, cases[i].line);
        free(line);
    }
}

static void test_last_words(void)
{
    EXPECT_TEXT(last_words_for("poweroff", false).message, "powered off from inside");
    EXPECT_TEXT(last_words_for("halt", false).message, "halted from inside");
    EXPECT_TEXT(last_words_for("reboot", false).message, "rebooted from inside");
    EXPECT(last_words_for("reboot", false).reboot && last_words_for("kexec", false).reboot);
    EXPECT(!last_words_for("poweroff", false).reboot && !last_words_for("", false).reboot);
    /* The host has asked for the end: it gets that, whatever somebody inside has
     * asked for. */
    EXPECT(!last_words_for("reboot", true).reboot);
    EXPECT_TEXT(last_words_for("reboot", true).message, "stopped on request: powered off in order");
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

static void test_machine_id(void)
{
    static const char own[] = "0123456789abcdef0123456789abcdef\n";
    static const char other[] = "ffffffffffffffffffffffffffffffff\n";
    char base[] = "/tmp/hypeman-unit-XXXXXX";
    char target[32];
    EXPECT(machine_id_valid(boot) && !machine_id_valid("") && !machine_id_valid("0123"));
    EXPECT(!machine_id_valid("00000000000000000000000000000000") &&
           !machine_id_valid("0123456789ABCDEF0123456789abcdef"));
    EXPECT(mkdtemp(base) != NULL);
    int top = open(base, O_RDONLY | O_DIRECTORY);
    EXPECT(mkdirat(top, "upper", 0755) == 0 && mkdirat(top, "image", 0755) == 0);
    int upper = openat(top, "upper", O_PATH | O_DIRECTORY);
    int image = openat(top, "image", O_PATH | O_DIRECTORY);
    EXPECT(!machine_id_is_own(upper, image) && machine_id_share(image, upper));
    EXPECT(mkdirat(upper, "etc", 0755) == 0 && mkdirat(image, "etc", 0755) == 0 &&
           mkdirat(image, "var", 0755) == 0 && mkdirat(image, "var/lib", 0755) == 0 &&
           mkdirat(image, "var/lib/dbus", 0755) == 0);
    int folders[] = {openat(upper, "etc", O_RDONLY | O_DIRECTORY),
                     openat(image, "etc", O_RDONLY | O_DIRECTORY),
                     openat(image, "var/lib/dbus", O_RDONLY | O_DIRECTORY)};
    EXPECT(file_replace(folders[0], "machine-id", "uninitialized\n") && !machine_id_is_own(upper, image));
    EXPECT(!machine_id_is(upper, "0123456789abcdef0123456789abcdef"));
    EXPECT(file_replace(folders[0], "machine-id", own) && machine_id_is_own(upper, image));
    EXPECT(machine_id_is(upper, "0123456789abcdef0123456789abcdef") &&
           !machine_id_is(upper, "ffffffffffffffffffffffffffffffff"));
    EXPECT(file_replace(folders[1], "machine-id", own) && !machine_id_is_own(upper, image));
    EXPECT(file_replace(folders[1], "machine-id", other) && machine_id_is_own(upper, image));
    EXPECT(file_replace(folders[2], "machine-id", own) && !machine_id_is_own(upper, image));
    EXPECT(machine_id_share(image, upper) && machine_id_share(image, upper));
    ssize_t length = readlinkat(folders[2], "machine-id", target, sizeof target);
    EXPECT(length == 15 && memcmp(target, "/etc/machine-id", 15) == 0);
    struct stat status;
    EXPECT(fstat(top, &status) == 0);
    for (size_t i = 0; i < 3; i++)
        close_fd(&folders[i]);
    close_fd(&image);
    close_fd(&upper);
    close_fd(&top);
    int parent = open("/tmp", O_PATH | O_DIRECTORY);
    EXPECT(tree_remove(parent, base + 5, status.st_dev));
    close_fd(&parent);
}

static void test_environment(void)
{
    static char a[] = "A=1";
    static char path[] = "PATH=/x";
    static char home[] = "HOME=/h";
    static char pathology[] = "PATHOLOGY=1";
    static char hostname[] = "HOSTNAME=x";
    struct environment_store store;
    char *bare[] = {a, pathology, NULL};
    char **built = environment_build(bare, "/root", "vm1", &store);
    EXPECT_TEXT(environment_get(built, "PATH"), DEFAULT_PATH);
    EXPECT_TEXT(environment_get(built, "HOME"), "/root");
    EXPECT_TEXT(environment_get(built, "HOSTNAME"), "vm1");
    EXPECT(built[0] == a && built[5] == NULL);
    free(built);
    built = environment_build(bare, "/", NULL, &store);
    EXPECT(environment_get(built, "HOSTNAME") == NULL && built[4] == NULL);
    free(built);
    char *full[] = {path, a, home, hostname, NULL};
    built = environment_build(full, "/root", "vm1", &store);
    EXPECT(built[0] == path && built[1] == a && built[2] == home && built[3] == hostname && built[4] == NULL);
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
    EXPECT(stop_order("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxpower"
                      "off 3\n") == -1);
    EXPECT(stop_order("xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\npow"
                      "eroff 3\n") == 3);
}

static void test_kernel_log(void)
{
    EXPECT(kernel_log_oom_victim("3,512,123,-;Out of memory: Killed process 41 "
                                 "(tail) total-vm:1kB\n") == 41);
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
    static const char whole[] = FIXED "mode=exec\0arg=sh\0arg=-c\0env=A=1\0workdir=/"
                                      "w\0user=app\0stop_signal=2\0new=1";
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
        WRONG(FIXED "mode=exec\0arg=x\0umask=512", "config disk: umask=512: expected a number from 0 to 511"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=nofile", "ulimit=nofile: expected NAME=SOFT:HARD"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=nofile=5", "ulimit=nofile=5: expected"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=nofile=5:4", "soft not above hard"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=nofile=unlimited:4", "soft not above hard"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=nofile=1:2:3", "expected NAME=SOFT:HARD"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=files=1:2", "expected NAME=SOFT:HARD"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=core=9223372036854775808:9223372036854775808", "expected"),
        WRONG(FIXED "mode=exec\0arg=x\0ulimit=core=100000000000000000000000:1", "expected"),
        WRONG("version", "cannot be read"),
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        EXPECT(!parse_config(wrong[i].records, wrong[i].size, &config, &why));
        EXPECT(strstr(why.words, wrong[i].words) != NULL);
        config_free(&config);
    }
}

static void test_settings(void)
{
    struct reason why;
    struct record failed;
    static const char several[] = "arg=umask=1\0umask=18\0new=1\0umask=63";
    char *records = exactly(several, sizeof several);
    struct settings settings = {records, sizeof several};
    size_t offset = 0;
    while (records_next(records, sizeof several, &offset, &failed))
        EXPECT(settings_check(&failed, &why));
    mode_t before = umask(022);
    EXPECT(settings_apply(&settings, &failed));
    EXPECT(umask(before) == 077);
    char *lines = settings_manager_lines(&settings);
    EXPECT_TEXT(lines, "");
    free(lines);
    free(records);
}

static void test_limits(void)
{
    struct record failed;
    static const char records[] = "ulimit=nofile=64:128\0umask=18\0ulimit=core=0:0\0ulimit=nofile=32:96";
    const struct settings settings = {records, sizeof records};
    char *lines = settings_manager_lines(&settings);
    EXPECT_TEXT(lines, "DefaultLimitNOFILE=64:128\nDefaultLimitCORE=0:0\nDefaultLimitNOFILE=32:96\n");
    free(lines);
    static const char infinite[] = "ulimit=memlock=5:unlimited";
    lines = settings_manager_lines(&(const struct settings){infinite, sizeof infinite});
    EXPECT_TEXT(lines, "DefaultLimitMEMLOCK=5:infinity\n");
    free(lines);
    pid_t child = fork();
    if (child == 0) {
        struct rlimit files;
        struct rlimit core;
        bool applied = settings_apply(&settings, &failed);
        (void)getrlimit(RLIMIT_NOFILE, &files);
        (void)getrlimit(RLIMIT_CORE, &core);
        _exit(applied && files.rlim_cur == 32 && files.rlim_max == 96 && core.rlim_cur == 0 &&
                      core.rlim_max == 0
                  ? 0
                  : 1);
    }
    int status;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
    static const char beyond[] = "ulimit=nofile=unlimited:unlimited";
    const struct settings refused = {beyond, sizeof beyond};
    EXPECT(!settings_apply(&refused, &failed) && errno == EPERM && failed.key == beyond);
}

/* Only the kernel's own hard limit is raised, which takes a right that a container may not have:
 * boot_guest.py. */
static void test_a_hard_limit_that_was_given_stays(void)
{
    static const char records[] = "umask=18";
    const struct settings settings = {records, sizeof records};
    pid_t child = fork();
    if (child == 0) {
        struct record failed;
        struct rlimit files = {1024, 5000};
        bool applied = setrlimit(RLIMIT_NOFILE, &files) == 0 && settings_apply(&settings, &failed);
        (void)getrlimit(RLIMIT_NOFILE, &files);
        _exit(applied && files.rlim_cur == 1024 && files.rlim_max == 5000 ? 0 : 1);
    }
    int status;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
}

static void test_fields(void)
{
    static const struct {
        const char *text;
        const char *wanted; /* key=value; of each field, or NULL */
    } cases[] = {
        {"", ""},
        {"a=1", "a=1;"},
        {"a=1,b=,c==", "a=1;b=;c==;"},
        {"p=%2C%25%2c%41,q=x", "p=,%,A;q=x;"},
        {"a", NULL},
        {"a=1,", "a=1;"},
        {"=1", NULL},
        {"a=1,,b=2", NULL},
        {"a=%", NULL},
        {"a=%4", NULL},
        {"a=%4g", NULL},
        {"a=%00", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text = exactly(cases[i].text, strlen(cases[i].text) + 1);
        char *rest = text;
        char got[64] = "";
        struct field field;
        enum fields_step step;
        while ((step = fields_next(&rest, &field)) == FIELDS_ONE)
            (void)snprintf(got + strlen(got), sizeof got - strlen(got), "%s=%s;", field.key, field.value);
        EXPECT((step == FIELDS_END) == (cases[i].wanted != NULL));
        if (step == FIELDS_END && cases[i].wanted != NULL)
            EXPECT_TEXT(got, cases[i].wanted);
        free(text);
    }
}

#define RUNS FIXED "mode=exec\0arg=x\0"

static void test_config_of_volumes(void)
{
    struct config config;
    struct reason why;
    static const char three[] = RUNS "volume=serial=v2,path=/data/in%2Cner,readonly=1,required=0,new=1\0"
                                     "volume=serial=v1,path=/data\0volume=serial=v3,path=/a,fstype=erofs\0"
                                     "volume=serial=v4,path=/z,overlay=1";
    EXPECT(parse_config(three, sizeof three, &config, &why) && config.volumes.count == 4);
    EXPECT_TEXT(config.volumes.all[0].path, "/a");
    EXPECT(config.volumes.all[0].readonly && config.volumes.all[0].required);
    EXPECT_TEXT(config.volumes.all[1].path, "/data");
    EXPECT_TEXT(config.volumes.all[1].type, "ext4");
    EXPECT(!config.volumes.all[1].readonly && config.volumes.all[1].required);
    EXPECT_TEXT(config.volumes.all[2].path, "/data/in,ner");
    EXPECT_TEXT(config.volumes.all[2].serial, "v2");
    EXPECT(config.volumes.all[2].readonly && !config.volumes.all[2].required);
    EXPECT(!config.volumes.all[2].overlay);
    EXPECT(config.volumes.all[3].overlay && config.volumes.all[3].readonly);
    EXPECT(!volumes_hold_etc(&config.volumes));
    config_free(&config);
    static const struct {
        const char *path;
        bool holds_etc;
    } places[] = {{"/", true},          {"/etc", true},      {"/etc/ssl/x", true},
                  {"/etcetera", false}, {"/srv/etc", false}, {"/data", false}};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char records[128];
        int used = snprintf(records, sizeof records, "serial=v,path=%s", places[i].path);
        struct volume volume;
        EXPECT(used > 0 && volume_parse(records, &volume, &why));
        EXPECT(volumes_hold_etc(&(struct volumes){&volume, 1}) == places[i].holds_etc);
    }
}

static void test_config_of_docker(void)
{
    struct config config;
    struct reason why;
    static const char whole[] =
        RUNS "init=1\0read_only=1\0stdin=1\0tty=1\0tmpfs=/z\0tmpfs=/a/b:size=1m,mode=0700,rw,exec,uid=5\0"
             "volume=serial=v,path=/a\0sysctl=a.b=1\0capabilities=1ffffffffff";
    EXPECT(parse_config(whole, sizeof whole, &config, &why) && config.volumes.count == 3);
    EXPECT(config.reaper && config.readonly_root && config.input && config.terminal);
    EXPECT_TEXT(config.volumes.all[0].type, "ext4");
    EXPECT_TEXT(config.volumes.all[1].path, "/a/b");
    EXPECT(config.volumes.all[1].serial == NULL && tmpfs_has_mode(&config.volumes.all[1]));
    EXPECT_TEXT(config.volumes.all[2].path, "/z");
    EXPECT(!tmpfs_has_mode(&config.volumes.all[2]));
    config_free(&config);
    static const struct {
        const char *record;
        const char *why;
    } refused[] = {
        {"init=2", "config disk: init=2: expected 0 or 1"},
        {"stdin=2", "config disk: stdin=2: expected 0 or 1"},
        {"tty=", "config disk: tty=: expected 0 or 1"},
        {"read_only=", "config disk: read_only=: expected 0 or 1"},
        {"tmpfs=a", "config disk: tmpfs=a: expected an absolute path without . and .."},
        {"tmpfs=/a/../b:ro", "config disk: tmpfs=/a/../b: expected an absolute path without . and .."},
        {"tmpfs=/a:ro,bananas", "config disk: tmpfs=/a: \"bananas\" is not an option that it can have"},
        {"tmpfs=/a:,", "config disk: tmpfs=/a: \"\" is not an option that it can have"},
        {"sysctl=a.b", "config disk: sysctl=a.b: expected NAME=VALUE, such as net.core.somaxconn=1024"},
        {"sysctl=../a=1", "config disk: sysctl=../a=1: expected NAME=VALUE, such as net.core.somaxconn=1024"},
        {"sysctl=a/../b=1",
         "config disk: sysctl=a/../b=1: expected NAME=VALUE, such as net.core.somaxconn=1024"},
        {"sysctl=a.b.=1", "config disk: sysctl=a.b.=1: expected NAME=VALUE, such as net.core.somaxconn=1024"},
        {"capabilities=", "config disk: capabilities=: expected a mask in hexadecimal"},
        {"capabilities=0x1", "config disk: capabilities=0x1: expected a mask in hexadecimal"},
        {"capabilities=11111111111111111",
         "config disk: capabilities=11111111111111111: expected a mask in hexadecimal"},
    };
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char records[256] = RUNS;
        size_t size = sizeof RUNS - 1;
        memcpy(records + size, refused[i].record, strlen(refused[i].record) + 1);
        EXPECT(!parse_config(records, size + strlen(refused[i].record) + 1, &config, &why));
        EXPECT_TEXT(why.words, refused[i].why);
        config_free(&config);
    }
}

static void test_signal_sets(void)
{
    static const char status[] = "Name:\tx\nSigPnd:\t00000000ffffffff\nSigBlk:\t0000000000000001\n"
                                 "SigIgn:\t0000000000001000\nSigCgt:\t8000000000004000\n";
    const struct signal_sets sets = signal_sets_parse(status);
    EXPECT(signal_in(sets.blocked, 1) && !signal_in(sets.blocked, 2));
    EXPECT(signal_in(sets.ignored, SIGPIPE) && !signal_in(sets.ignored, SIGTERM));
    EXPECT(signal_in(sets.caught, SIGTERM) && signal_in(sets.caught, 64) && !signal_in(sets.caught, SIGINT));
    const struct signal_sets none = signal_sets_parse("");
    EXPECT(none.blocked == 0 && none.ignored == 0 && none.caught == 0);
    EXPECT(signal_ends(SIGTERM) && signal_ends(SIGQUIT) && signal_ends(37));
    EXPECT(!signal_ends(SIGCHLD) && !signal_ends(SIGWINCH) && !signal_ends(SIGSTOP));
}

static void test_config_of_networks(void)
{
    struct config config;
    struct reason why;
    static const char whole[] = RUNS "net=mac=52:54:00:AB:cd:01,name=eth0,mtu=1400,address=10.1.2.3/"
                                     "24,address=fd00::3/64,"
                                     "gateway=10.1.2.1,gateway=fe80::1,new=1\0net=mac=52:54:00:ab:cd:"
                                     "02\0dns=10.1.2.1\0dns=fd00::1\0"
                                     "search=example.org\0search=lan";
    EXPECT(parse_config(whole, sizeof whole, &config, &why) && config.network.count == 2);
    const struct interface *first = &config.network.interfaces[0];
    EXPECT_TEXT(first->mac, "52:54:00:ab:cd:01");
    EXPECT_TEXT(first->name, "eth0");
    EXPECT(first->mtu == 1400 && first->address_count == 2 && first->gateway_count == 2);
    EXPECT(first->addresses[0].family == AF_INET && first->addresses[0].prefix == 24);
    EXPECT(memcmp(first->addresses[0].bytes, "\x0a\x01\x02\x03", 4) == 0);
    EXPECT(first->addresses[1].family == AF_INET6 && first->addresses[1].prefix == 64);
    EXPECT(first->gateways[1].family == AF_INET6 && first->gateways[1].bytes[0] == 0xfe);
    EXPECT(config.network.interfaces[1].name == NULL && config.network.interfaces[1].mtu == 0);
    EXPECT(config.network.dns_count == 2 && config.network.search_count == 2);
    EXPECT_TEXT(config.network.search[1], "lan");
    EXPECT(network_wanted(&config.network));
    config_free(&config);
    EXPECT(!network_wanted(&config.network));
}

static void test_config_of_set_up_refused(void)
{
    static const struct {
        const char *record;
        const char *words;
    } wrong[] = {
        {"volume=path=/a", "needs a serial"},
        {"volume=serial=v", "needs a serial and a path"},
        {"volume=serial=,path=/a", "needs a serial"},
        {"volume=serial=v,path=a", "path=a: expected an absolute path"},
        {"volume=serial=v,path=/a/../etc", "without . and .."},
        {"volume=serial=v,path=/a/.", "without . and .."},
        {"volume=serial=v,path=/a//b", "expected an absolute path"},
        {"volume=serial=v,path=/a/", "expected an absolute path"},
        {"volume=serial=v,path=/a,readonly=yes", "readonly=yes: expected 0 or 1"},
        {"volume=serial=v,path=/a,overlay=2", "overlay=2: expected 0 or 1"},
        {"volume=serial=../v,path=/a,overlay=1", "serial=../v: no overlay"},
        {"volume=serial=a/v,path=/a,overlay=1", "serial=a/v: no overlay"},
        {"volume=serial=v,path=/a,fstype=xfs", "fstype=xfs: expected ext4 or erofs"},
        {"volume=serial", "fields cannot be read"},
        {"net=name=eth0", "needs a mac"},
        {"net=mac=52:54:00:ab:cd", "mac=52:54:00:ab:cd: expected a MAC address"},
        {"net=mac=52:54:00:ab:cd:0g", "expected a MAC address"},
        {"net=mac=52:54:00:ab:cd:01,name=a/b", "name=a/b: expected the name of an interface"},
        {"net=mac=52:54:00:ab:cd:01,name=a234567890123456", "expected the name of an interface"},
        {"net=mac=52:54:00:ab:cd:01,mtu=67", "mtu=67: expected a number from 68"},
        {"net=mac=52:54:00:ab:cd:01,address=10.0.0.1", "address=10.0.0.1: expected ADDRESS/PREFIX"},
        {"net=mac=52:54:00:ab:cd:01,address=10.0.0.1/33", "expected ADDRESS/PREFIX"},
        {"net=mac=52:54:00:ab:cd:01,address=fd00::1/129", "expected ADDRESS/PREFIX"},
        {"net=mac=52:54:00:ab:cd:01,gateway=x", "gateway=x: expected an address"},
        {"dns=example.org", "dns=example.org: expected an address"},
        {"host=name=db", "needs an address and a name"},
        {"host=address=10.0.0.1", "needs an address and a name"},
        {"host=address=10.0.0.1/24,name=db", "address=10.0.0.1/24: expected an address"},
        {"host=address=10.0.0,name=db", "expected an address"},
        {"host=address=fd00::1%25eth0,name=db", "expected an address"},
        {"host=address=10.0.0.1,name=", "name=: expected a host name"},
        {"host=address=10.0.0.1,name=a b", "name=a b: expected a host name"},
        {"host=address=10.0.0.1,name=a\n", "expected a host name"},
        {"host=address=10.0.0.1,name=a%23b", "name=a#b: expected a host name"},
        {"host=address=10.0.0.1,name=1,name=2,name=3,name=4,name=5,name=6,name=7,name=8,name=9", "at most 8"},
        {"host=address", "fields cannot be read"},
        {"search=a b", "search=a b: expected a domain"},
        {"search=", "expected a domain"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char records[256];
        memcpy(records, RUNS, sizeof RUNS - 1);
        size_t length = strlen(wrong[i].record) + 1;
        memcpy(records + sizeof RUNS - 1, wrong[i].record, length);
        struct config config;
        struct reason why = {""};
        bool parsed = parse_config(records, sizeof RUNS - 1 + length, &config, &why);
        if (parsed || strstr(why.words, wrong[i].words) == NULL) {
            (void)fprintf(stderr, "%s: \"%s\"\n", wrong[i].record, why.words);
            failures++;
        }
        config_free(&config);
    }
    struct config config;
    struct reason why;
    static const char twice[] = RUNS "volume=serial=a,path=/x\0volume=serial=b,path=/x";
    EXPECT(!parse_config(twice, sizeof twice, &config, &why) && strstr(why.words, "twice") != NULL);
    config_free(&config);
}

static void test_config_of_hosts(void)
{
    struct config config;
    struct reason why;
    static const char two[] = RUNS "host=address=10.1.2.3,name=db,name=db.hypeman,new=1\0"
                                   "host=name=db,address=fd00::3";
    EXPECT(parse_config(two, sizeof two, &config, &why) && config.hosts.count == 2);
    EXPECT_TEXT(config.hosts.all[0].address, "10.1.2.3");
    EXPECT(config.hosts.all[0].name_count == 2 && config.hosts.all[1].name_count == 1);
    EXPECT_TEXT(config.hosts.all[0].names[1], "db.hypeman");
    EXPECT_TEXT(config.hosts.all[1].address, "fd00::3");
    config_free(&config);

    static char many[sizeof RUNS + (HOSTS_MAX + 1) * 40];
    static const char record[] = "host=address=10.1.2.3,name=db";
    size_t used = sizeof RUNS - 1;
    memcpy(many, RUNS, used);
    for (int i = 0; i <= HOSTS_MAX; i++) {
        memcpy(many + used, record, sizeof record);
        used += sizeof record;
    }
    EXPECT(parse_config(many, used - sizeof record, &config, &why) && config.hosts.count == HOSTS_MAX);
    config_free(&config);
    EXPECT(!parse_config(many, used, &config, &why) && strstr(why.words, "at most 4096") != NULL);
    config_free(&config);
}

#define BLOCK "# BEGIN hypemand\n10.0.0.3\tdb db.hypeman\nfd00::3\tdb db.hypeman\n# END hypemand\n"

static void test_hosts(void)
{
    static struct host all[] = {
        {.address = "10.0.0.3", .names = {"db", "db.hypeman"}, .name_count = 2},
        {.address = "fd00::3", .names = {"db", "db.hypeman"}, .name_count = 2},
    };
    static const struct hosts none = {.all = NULL};
    static const struct hosts others = {.all = all, .count = 2};
    static const struct {
        const char *name;
        const struct hosts *hosts;
        const char *old;
        const char *wanted;
    } cases[] = {
        /* without a network: the name, where it is not there */
        {"web", &none, "", "127.0.0.1\tlocalhost web\n::1\tlocalhost ip6-localhost\n"},
        {"web", &none, "1.2.3.4 a", "1.2.3.4 a\n127.0.1.1\tweb\n"},
        {"web", &none, "1.2.3.4 a WEB", "1.2.3.4 a WEB"},
        {"web", &none, "1.2.3.4 a # web\n", "1.2.3.4 a # web\n127.0.1.1\tweb\n"},
        /* others, but not itself */
        {"web", &others, "", "127.0.0.1\tlocalhost web\n::1\tlocalhost ip6-localhost\n" BLOCK},
        {"web", &others, "1.2.3.4 a", "1.2.3.4 a\n127.0.1.1\tweb\n" BLOCK},
        {"web", &others, "1.2.3.4 web", "1.2.3.4 web\n" BLOCK},
        /* itself: no loopback address has its name, unless somebody else wrote that */
        {"db", &others, "", "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n" BLOCK},
        {"DB", &others, "1.2.3.4 a\n", "1.2.3.4 a\n" BLOCK},
        {"db", &others, "127.0.0.1\tlocalhost db\n::1\tlocalhost\n127.0.1.1\tdb\n",
         "127.0.0.1\tlocalhost\n::1\tlocalhost\n" BLOCK},
        {"db", &others, "127.0.0.1 localhost db\n127.0.1.1 db\n127.0.1.1\tdb2",
         "127.0.0.1 localhost db\n127.0.1.1 db\n127.0.1.1\tdb2\n" BLOCK},
        /* the block of another boot is replaced, where it is */
        {"db", &others, "a\n# BEGIN hypemand\n10.0.0.9\told\n# END hypemand\nb\n", "a\n" BLOCK "b\n"},
        {"db", &others, BLOCK "b\n" BLOCK "c", BLOCK "b\nc"},
        {"db", &others, "# BEGIN hypemand\n10.0.0.9\told\n# END hypemand", BLOCK},
        {"web", &none, "a\n" BLOCK "b\n", "a\nb\n127.0.1.1\tweb\n"},
        {"db", &none, BLOCK, "127.0.1.1\tdb\n"},
        /* marks that do not belong together, and what only looks like one */
        {"db", &others, "# BEGIN hypemand\n1.2.3.4 x\n", BLOCK "1.2.3.4 x\n"},
        {"db", &others, "# END hypemand\n", "# END hypemand\n" BLOCK},
        {"db", &others, " # BEGIN hypemand\n# END hypemand \n", " # BEGIN hypemand\n# END hypemand \n" BLOCK},
        {"db", &others, "\n\n", "\n\n" BLOCK},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *old = exactly(cases[i].old, strlen(cases[i].old) + 1);
        char *text = hosts_derive(old, cases[i].name, NULL, cases[i].hosts);
        EXPECT_TEXT(text == NULL ? "nothing" : text, cases[i].wanted);
        free(old);
        /* What is right stays as it is. */
        char *again = text == NULL ? NULL : hosts_derive(text, cases[i].name, NULL, cases[i].hosts);
        EXPECT_TEXT(again == NULL ? "nothing" : again, cases[i].wanted);
        free(again);
        free(text);
    }
}

/* A fork has another name than the VM whose disk it has. */
static void test_hosts_of_a_fork(void)
{
    static struct host all[] = {{.address = "10.0.0.3", .names = {"db", "db.hypeman"}, .name_count = 2},
                                {.address = "fd00::3", .names = {"db", "db.hypeman"}, .name_count = 2}};
    static const struct hosts others = {.all = all, .count = 2};
    static const struct hosts none = {.all = NULL};
    static const struct {
        const char *name;
        const struct hosts *hosts;
        const char *old;
        const char *wanted;
    } cases[] = {
        {"db", &others, "127.0.0.1\tlocalhost old\n::1\tlocalhost\n",
         "127.0.0.1\tlocalhost\n::1\tlocalhost\n" BLOCK},
        {"db", &others, "1.2.3.4 a\n127.0.1.1\told\n# BEGIN hypemand\n10.0.0.9\told\n# END hypemand\n",
         "1.2.3.4 a\n" BLOCK},
        {"new", &none, "1.2.3.4 a\n127.0.1.1\told\n", "1.2.3.4 a\n127.0.1.1\tnew\n"},
        {"new", &none, "1.2.3.4 old\n127.0.1.1\tnew\n", "1.2.3.4 old\n127.0.1.1\tnew\n"},
        {"old", &none, "1.2.3.4 a\n127.0.1.1\told\n", "1.2.3.4 a\n127.0.1.1\told\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *old = exactly(cases[i].old, strlen(cases[i].old) + 1);
        char *text = hosts_derive(old, cases[i].name, "old", cases[i].hosts);
        EXPECT_TEXT(text == NULL ? "nothing" : text, cases[i].wanted);
        free(old);
        free(text);
    }
}

/* --- what a guest that goes on is told --- */

#define GOES_ON "clock=1700000000000000005\0entropy=" HEX_64 HEX_64 "\0"
#define HEX_64 "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static void test_thaw(void)
{
    static const char all[] =
        GOES_ON "boot=0123456789abcdef0123456789abcdef\0hostname=vm2\0"
                "machine_id=abababababababababababababababab\0"
                "net=old_mac=52:54:00:AB:CD:01,mac=52:54:00:ab:cd:02,address=10.0.0.3/24\0"
                "dns=10.0.0.1\0search=lan\0host=address=10.0.0.3,name=vm2\0"
                "reset=ssh-host-keys\0later=x";
    struct thaw thaw;
    struct reason why = {""};
    char *records = exactly(all, sizeof all);
    EXPECT(thaw_parse(records, sizeof all, &thaw, &why));
    EXPECT(thaw.clock.tv_sec == 1700000000 && thaw.clock.tv_nsec == 5);
    EXPECT(thaw.entropy[1] == 1 && thaw.entropy[31] == 31 && thaw.entropy[63] == 31);
    EXPECT_TEXT(thaw.boot, "0123456789abcdef0123456789abcdef");
    EXPECT_TEXT(thaw.hostname, "vm2");
    EXPECT_TEXT(thaw.network.interfaces[0].old_mac, "52:54:00:ab:cd:01");
    EXPECT(thaw.network.count == 1 && thaw.network.dns_count == 1 && thaw.network.search_count == 1);
    EXPECT(thaw.hosts.count == 1 && thaw.reset_ssh_host_keys);
    thaw_free(&thaw);
    free(records);

    static const char plain[] = GOES_ON;
    records = exactly(plain, sizeof plain - 1);
    EXPECT(thaw_parse(records, sizeof plain - 1, &thaw, &why));
    EXPECT(thaw.boot == NULL && thaw.hostname == NULL && thaw.machine_id == NULL &&
           !thaw.reset_ssh_host_keys);
    thaw_free(&thaw);
    free(records);
}

static void test_build_id(void)
{
    static const char other[] = "\4\0\0\0\3\0\0\0\1\0\0\0Abc\0xyz\0";
    static const char ours[] = "\4\0\0\0\3\0\0\0\3\0\0\0GNU\0\x2a\xf0\xd5";
    char id[HEADERS_ID_SIZE] = "";
    char notes[64];
    memcpy(notes, other, sizeof other - 1);
    memcpy(notes + sizeof other - 1, ours, sizeof ours - 1);
    size_t size = sizeof other - 1 + sizeof ours - 1;
    char *whole = exactly(notes, size);
    EXPECT(headers_find_id((const uint8_t *)whole, size, id));
    EXPECT_TEXT(id, "2af0d5");
    free(whole);
    for (size_t cut = 0; cut < size; cut++) {
        char *part = exactly(notes, cut);
        EXPECT(!headers_find_id((const uint8_t *)part, cut, id));
        free(part);
    }
}

/* --- folders of a root that is not ours --- */

static void test_in_root(void)
{
    char base[] = "/tmp/hypeman-unit-XXXXXX";
    char path[64];
    char text[64];
    EXPECT(mkdtemp(base) != NULL);
    int outside = open(base, O_PATH | O_DIRECTORY);
    EXPECT(mkdirat(outside, "root", 0755) == 0 && mkdirat(outside, "root/usr", 0755) == 0);
    EXPECT(symlinkat("/usr", outside, "root/lib") == 0 && symlinkat("../../..", outside, "root/up") == 0);
    EXPECT(symlinkat("/nowhere", outside, "root/broken") == 0);
    (void)snprintf(path, sizeof path, "%s/root", base);
    int root = open(path, O_PATH | O_DIRECTORY);
    static const struct {
        const char *path;
        const char *made;
    } cases[] = {
        {"/", "root"},   {"/lib/a", "root/usr/a"}, {"/up/b//c/", "root/b/c"}, {"/lib/a", "root/usr/a"},
        {"d", "root/d"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct stat got;
        struct stat wanted;
        int folder = folder_in_root(root, cases[i].path);
        EXPECT(folder >= 0 && fstat(folder, &got) == 0 && fstatat(outside, cases[i].made, &wanted, 0) == 0 &&
               got.st_ino == wanted.st_ino);
        close_fd(&folder);
    }
    EXPECT(folder_in_root(root, "/broken/x") < 0 && folder_in_root(root, "") < 0);
    /* A link is replaced, not followed. */
    EXPECT(symlinkat("../victim", outside, "root/usr/resolv.conf") == 0);
    int usr = openat(root, "usr", O_RDONLY | O_DIRECTORY);
    EXPECT(file_replace(usr, "resolv.conf", "first\n") && file_replace(usr, "resolv.conf", "text\n"));
    (void)snprintf(path, sizeof path, "%s/root/usr/resolv.conf", base);
    EXPECT(file_read(path, text, sizeof text) == 5);
    EXPECT_TEXT(text, "text\n");
    EXPECT(faccessat(outside, "root/victim", F_OK, 0) != 0 && faccessat(outside, "victim", F_OK, 0) != 0);
    EXPECT(!file_replace(usr, "a", "x") || unlinkat(usr, "a", 0) == 0);
    close_fd(&usr);
    close_fd(&root);
    close_fd(&outside);
    struct stat status;
    int parent = open("/tmp", O_PATH | O_DIRECTORY);
    EXPECT(stat(base, &status) == 0 && tree_remove(parent, base + 5, status.st_dev));
    close_fd(&parent);
}

static void test_trees(void)
{
    char base[] = "/tmp/hypeman-unit-XXXXXX";
    struct stat status;
    EXPECT(mkdtemp(base) != NULL && stat(base, &status) == 0);
    int folder = open(base, O_RDONLY | O_DIRECTORY);
    EXPECT(mkdirat(folder, "from", 0755) == 0 && mkdirat(folder, "from/sub", 0755) == 0 &&
           mkdirat(folder, "kept", 0755) == 0);
    int from = openat(folder, "from", O_RDONLY | O_DIRECTORY);
    EXPECT(file_replace(from, "a", "content\n") && fchmodat(from, "a", 0640, 0) == 0 &&
           file_replace(from, "sub/b", "x") == false && symlinkat("../kept", from, "link") == 0);
    /* What is linked to stays, and so does what is on another device. */
    EXPECT(!tree_remove(folder, "from", status.st_dev + 1) && errno == EXDEV);
    EXPECT(faccessat(folder, "from/a", F_OK, 0) == 0);
    EXPECT(tree_remove(folder, "from", status.st_dev) && faccessat(folder, "kept", F_OK, 0) == 0);
    EXPECT(!tree_remove(folder, "from", status.st_dev) && errno == ENOENT);
    close_fd(&from);
    close_fd(&folder);
    int parent = open("/tmp", O_PATH | O_DIRECTORY);
    EXPECT(tree_remove(parent, base + 5, status.st_dev));
    close_fd(&parent);
}

static void test_tree_copy(void)
{
    char base[] = "/tmp/hypeman-unit-XXXXXX";
    char text[16];
    struct stat status;
    struct stat other;
    const struct timespec times[2] = {{1000000000, 5}, {1000000001, 6}};
    EXPECT(mkdtemp(base) != NULL && stat(base, &status) == 0);
    int folder = open(base, O_RDONLY | O_DIRECTORY);
    EXPECT(mkdirat(folder, "from", 0755) == 0 && mkdirat(folder, "from/sub", 0755) == 0 &&
           mkdirat(folder, "from/sub/deep", 0700) == 0 && mkdirat(folder, "to", 0755) == 0);
    int from = openat(folder, "from", O_PATH | O_DIRECTORY);
    int to = openat(folder, "to", O_PATH | O_DIRECTORY);
    int deep = openat(from, "sub/deep", O_RDONLY | O_DIRECTORY);
    EXPECT(file_replace(deep, "a", "content\n") && fchownat(deep, "a", 12, 34, 0) == 0 &&
           fchmodat(deep, "a", 06751, 0) == 0 && linkat(deep, "a", from, "again", 0) == 0);
    EXPECT(mkfifoat(deep, "fifo", 0600) == 0 && fchmodat(deep, "fifo", 0666, 0) == 0);
    EXPECT(symlinkat("../nowhere", from, "link") == 0 &&
           fchownat(from, "link", 7, 8, AT_SYMLINK_NOFOLLOW) == 0);
    EXPECT(fchownat(from, "sub", 1000, 1001, 0) == 0 && fchmodat(from, "sub", 03777, 0) == 0);
    EXPECT(utimensat(deep, "a", times, 0) == 0 && utimensat(from, "sub", times, 0) == 0);

    EXPECT(tree_copy(from, to));
    EXPECT(fstatat(to, "sub", &status, 0) == 0 && status.st_uid == 1000 && status.st_gid == 1001);
    EXPECT((status.st_mode & 07777) == 03777 && status.st_mtim.tv_sec == 1000000001);
    EXPECT(fstatat(to, "sub/deep/a", &status, 0) == 0 && status.st_uid == 12 && status.st_gid == 34);
    EXPECT(status.st_mode == (S_IFREG | 06751) && status.st_mtim.tv_nsec == 6 && status.st_nlink == 2);
    EXPECT(fstatat(to, "again", &other, 0) == 0 && other.st_ino == status.st_ino);
    EXPECT(fstatat(to, "sub/deep/fifo", &status, 0) == 0 && status.st_mode == (S_IFIFO | 0666));
    EXPECT(readlinkat(to, "link", text, sizeof text) == 10 && memcmp(text, "../nowhere", 10) == 0);
    EXPECT(fstatat(to, "link", &status, AT_SYMLINK_NOFOLLOW) == 0 && status.st_uid == 7);
    EXPECT(!tree_copy(from, to) && errno == EEXIST);

    EXPECT(fchmodat(folder, "from", 01770, 0) == 0 && fchownat(folder, "from", 5, 6, 0) == 0);
    EXPECT(folder_resemble(to, from) && fstat(to, &status) == 0 && status.st_uid == 5 && status.st_gid == 6);
    EXPECT((status.st_mode & 07777) == 01770);
    close_fd(&deep);
    close_fd(&from);
    close_fd(&to);
    close_fd(&folder);
    int parent = open("/tmp", O_PATH | O_DIRECTORY);
    EXPECT(tree_remove(parent, base + 5, status.st_dev));
    close_fd(&parent);
}

/* A folder that looks like a new ext4, and one of an image with a file in a folder of another owner. */
static void test_first_use(void)
{
    char base[] = "/tmp/hypeman-unit-XXXXXX";
    struct stat status;
    EXPECT(mkdtemp(base) != NULL);
    int top = open(base, O_RDONLY | O_DIRECTORY);
    EXPECT(mkdirat(top, "image", 0750) == 0 && fchownat(top, "image", 1000, 1001, 0) == 0 &&
           mkdirat(top, "image/sub", 0700) == 0 && mkdirat(top, "image/lost+found", 0700) == 0 &&
           mkdirat(top, "volume", 0755) == 0);
    int folder = openat(top, "image", O_PATH | O_DIRECTORY);
    int volume = openat(top, "volume", O_PATH | O_DIRECTORY);
    int sub = openat(folder, "sub", O_RDONLY | O_DIRECTORY);
    EXPECT(file_replace(sub, "seed", "seed\n"));
    close_fd(&sub);

    /* No lost+found: it is not new. */
    EXPECT(first_use(volume, folder) && faccessat(volume, "sub", F_OK, 0) != 0);
    /* What fsck has found is somebody's. */
    EXPECT(mkdirat(volume, "lost+found", 0700) == 0 && mkdirat(volume, "lost+found/#12", 0755) == 0);
    EXPECT(first_use(volume, folder) && faccessat(volume, "sub", F_OK, 0) != 0);
    EXPECT(unlinkat(volume, "lost+found/#12", AT_REMOVEDIR) == 0);
    /* What was cut off while it was copied is begun anew. */
    EXPECT(mkdirat(volume, "lost+found/.hypeman-copying", 0700) == 0 &&
           mkdirat(volume, "lost+found/.hypeman-copying/half", 0700) == 0);
    EXPECT(first_use(volume, folder) && faccessat(volume, "sub/seed", F_OK, 0) == 0);
    EXPECT(faccessat(volume, "lost+found", F_OK, 0) != 0 && faccessat(volume, "half", F_OK, 0) != 0);
    EXPECT(fstat(volume, &status) == 0 && status.st_uid == 1000 && status.st_gid == 1001);
    EXPECT((status.st_mode & 07777) == 0750);
    /* And never again. */
    EXPECT(tree_remove(volume, "sub", status.st_dev) && fchownat(top, "volume", 5, 5, 0) == 0);
    EXPECT(first_use(volume, folder) && faccessat(volume, "sub", F_OK, 0) != 0);
    EXPECT(fstat(volume, &status) == 0 && status.st_uid == 5);
    /* What was cut off between the copy and its places is completed. */
    EXPECT(mkdirat(volume, "lost+found", 0700) == 0 &&
           mkdirat(volume, "lost+found/.hypeman-copied", 0711) == 0 && mkdirat(volume, "first", 0755) == 0 &&
           mkdirat(volume, "lost+found/.hypeman-copied/second", 0755) == 0);
    EXPECT(first_use(volume, folder) && faccessat(volume, "first", F_OK, 0) == 0);
    EXPECT(faccessat(volume, "second", F_OK, 0) == 0 && faccessat(volume, "lost+found", F_OK, 0) != 0);
    EXPECT(fstat(volume, &status) == 0 && (status.st_mode & 07777) == 0711);
    /* A folder with nothing in it gives its owner alone; one with a file in the place of lost+found nothing.
     */
    EXPECT(tree_remove(volume, "first", status.st_dev) && tree_remove(volume, "second", status.st_dev) &&
           tree_remove(folder, "sub", status.st_dev) && mkdirat(volume, "lost+found", 0700) == 0);
    EXPECT(first_use(volume, folder) && faccessat(volume, "lost+found", F_OK, 0) != 0);
    EXPECT(fstat(volume, &status) == 0 && status.st_uid == 1000 && (status.st_mode & 07777) == 0750);
    EXPECT(symlinkat("/", volume, "lost+found") == 0 && first_use(volume, folder));
    close_fd(&volume);
    close_fd(&folder);
    close_fd(&top);
    int parent = open("/tmp", O_PATH | O_DIRECTORY);
    EXPECT(tree_remove(parent, base + 5, status.st_dev));
    close_fd(&parent);
}

/* --- stages --- */

struct meeting {
    int here[2];
    int beside[2];
    bool fail_here;
    bool fail_beside;
    bool die_beside;
};

/* Each waits for the other's byte: only at once can both end. */
static bool meet(int mine, int theirs)
{
    char byte;
    return write(mine, "", 1) == 1 && read(theirs, &byte, 1) == 1;
}

static bool work_here(void *of, struct reason *why)
{
    const struct meeting *meeting = of;
    if (meeting->fail_here)
        return refuse(why, "here");
    return meet(meeting->here[1], meeting->beside[0]);
}

static bool work_beside(void *of, struct reason *why)
{
    const struct meeting *meeting = of;
    if (meeting->die_beside)
        _exit(3);
    if (!meet(meeting->beside[1], meeting->here[0]) || meeting->fail_beside)
        return refuse(why, "beside");
    return true;
}

/* One of a row in which each waits for its neighbour's byte. */
struct neighbour {
    int mine;
    int theirs;
    int calls;
    bool met;
};

static void *meet_neighbour(void *item)
{
    struct neighbour *one = item;
    one->calls++;
    one->met = meet(one->mine, one->theirs);
    return NULL;
}

static void *count_call(void *item)
{
    (*(int *)item)++;
    return NULL;
}

static void test_at_once(void)
{
    enum { COUNT = 9 };
    int ends[COUNT][2];
    struct neighbour row[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        EXPECT(pipe(ends[i]) == 0);
    for (size_t i = 0; i < COUNT; i++)
        row[i] = (struct neighbour){.mine = ends[i][1], .theirs = ends[(i + COUNT - 1) % COUNT][0]};
    at_once(meet_neighbour, row, sizeof row[0], COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        EXPECT(row[i].calls == 1 && row[i].met);
        EXPECT(close(ends[i][0]) == 0 && close(ends[i][1]) == 0);
    }
    int calls[2] = {0, 0};
    at_once(count_call, calls, sizeof calls[0], 1);
    EXPECT(calls[0] == 1 && calls[1] == 0);
    at_once(count_call, calls, sizeof calls[0], 0);
    EXPECT(calls[0] == 1);
}

static double seconds(struct timespec at)
{
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static void test_stages(void)
{
    static const struct job here = {"here", work_here};
    static const struct job beside = {"beside", work_beside};
    static struct report report;
    struct meeting meeting = {.fail_here = false};
    struct reason why = {""};
    EXPECT(pipe(meeting.here) == 0 && pipe(meeting.beside) == 0);
    report_stage(&report, "before");
    EXPECT(stages_run(here, beside, &meeting, &report, &why) && report.stage_count == 3);
    EXPECT_TEXT(report.stages[1].name, "here");
    EXPECT_TEXT(report.stages[2].name, "beside");
    EXPECT(seconds(report.stages[1].start) < seconds(report.stages[2].end));
    EXPECT(seconds(report.stages[2].start) < seconds(report.stages[1].end));
    report_stage(&report, "after");
    EXPECT(seconds(report.stages[0].end) <= seconds(report.stages[1].start));
    EXPECT(seconds(report.stages[1].end) <= seconds(report.stages[3].start));
    meeting.fail_beside = true;
    EXPECT(!stages_run(here, beside, &meeting, &report, &why));
    EXPECT_TEXT(why.words, "beside");
    meeting = (struct meeting){.fail_here = true, .die_beside = true};
    EXPECT(!stages_run(here, beside, &meeting, &report, &why));
    EXPECT_TEXT(why.words, "here");
    EXPECT(pipe(meeting.here) == 0 && pipe(meeting.beside) == 0 && write(meeting.beside[1], "", 1) == 1);
    meeting.fail_here = false;
    EXPECT(!stages_run(here, beside, &meeting, &report, &why));
    EXPECT_TEXT(why.words, "the stage beside ended without a word, or not at all");
}

static void test_an_agent_that_is_not_wanted(void)
{
    struct agent_process agent = AGENT_PROCESS_NONE;
    agent_dismiss(&agent);
    agent_find(&agent, "/usr/bin/yes"); /* which does not end by itself */
    EXPECT(agent_start(&agent));
    pid_t pid = agent.pid;
    EXPECT(agent_start(&agent) && agent.pid == pid);
    agent_dismiss(&agent);
    EXPECT(agent.pid == 0 && agent.socket < 0 && agent.verdict < 0);
    EXPECT(kill(pid, 0) != 0 && errno == ESRCH);
    close_fd(&agent.binary);
    agent_find(&agent, "/nowhere/hypeman-agent");
    EXPECT(!agent_start(&agent));
    EXPECT_TEXT(agent.no_binary.words, "cannot open its binary: No such file or directory");
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

#define ENTROPY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define START_WORDS "quiet hypeman.boot=0123456789abcdef0123456789abcdef"

/* `claimed`: what its header says of the size. */
static bool parse_block(const char *records, size_t size, size_t claimed, char id[BOOT_ID_LENGTH + 1],
                        struct reason *why)
{
    static struct warm_start start;
    struct timespec clock = {0};
    uint8_t entropy[64] = {0};
    memset(start.block, 0, sizeof start.block);
    memcpy(start.block, "HYPESTA1", 8);
    put_le32(start.block + 8, (uint32_t)claimed);
    memcpy(start.block + 12, records, size);
    bool parsed = start_block_parse(&start, id, &clock, entropy, why);
    EXPECT(!parsed || (clock.tv_sec == 1700000000 && clock.tv_nsec == 5 && entropy[63] == 31));
    return parsed;
}

static void test_start_block(void)
{
    static const char whole[] = "clock=1700000000000000005\0entropy=" ENTROPY ENTROPY "\0words=" START_WORDS;
    static const char no_clock[] = "clock=x\0entropy=" ENTROPY ENTROPY "\0words=" START_WORDS;
    static const char few[] = "clock=1\0entropy=" ENTROPY "\0words=" START_WORDS;
    static const char no_boot[] = "clock=1\0entropy=" ENTROPY ENTROPY "\0words=quiet";
    static const struct {
        const char *records;
        size_t size;
        size_t claimed;
    } wrong[] = {
        {whole, sizeof whole, sizeof whole - 1}, /* it has no NUL */
        {whole, sizeof whole, START_BLOCK_SIZE}, /* behind its end */
        {whole, sizeof whole, UINT32_MAX},
        {"", 0, 0},
        {no_clock, sizeof no_clock, sizeof no_clock},
        {few, sizeof few, sizeof few},
        {no_boot, sizeof no_boot, sizeof no_boot},
    };
    char id[BOOT_ID_LENGTH + 1] = "";
    struct reason why = {""};
    EXPECT(parse_block(whole, sizeof whole, sizeof whole, id, &why));
    EXPECT_TEXT(id, "0123456789abcdef0123456789abcdef");
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        why.words[0] = '\0';
        EXPECT(!parse_block(wrong[i].records, wrong[i].size, wrong[i].claimed, id, &why));
        EXPECT(strncmp(why.words, "config disk: ", 13) == 0);
    }
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

static void put_number(unsigned char *at, uint32_t number)
{
    for (int i = 0; i < 4; i++)
        at[i] = (unsigned char)(number >> 8 * i);
}

static void test_growth(void)
{
    static const struct {
        uint64_t bytes;  /* of the device */
        uint64_t blocks; /* of the file system, 4 KiB each */
        bool wide;
        uint64_t wanted;
    } cases[] = {
        {64ULL << 20, 16384, true, 0},
        {(64ULL << 20) + 4095, 16384, true, 0},
        {(64ULL << 20) + 4096, 16384, true, 16385},
        {32ULL << 20, 16384, true, 0},
        {32ULL << 40, (1ULL << 32) + 1, true, 1ULL << 33},
        {16ULL << 40, (1ULL << 32) + 1, true, 0},
        {64ULL << 20, (1ULL << 32) + 16384, false, 0},
        {64ULL << 20, (1ULL << 32) + 16383, false, 16384},
    };
    unsigned char superblock[SUPERBLOCK_SIZE] = {0};
    EXPECT(growth_wanted(superblock, 1ULL << 30) == 0);
    superblock[0x38] = 0x53;
    superblock[0x39] = 0xEF;
    put_number(superblock + 0x18, 2);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_number(superblock + 0x4, (uint32_t)cases[i].blocks);
        put_number(superblock + 0x150, (uint32_t)(cases[i].blocks >> 32));
        put_number(superblock + 0x60, cases[i].wide ? 0x80 : 0);
        EXPECT(growth_wanted(superblock, cases[i].bytes) == cases[i].wanted);
    }
    put_number(superblock + 0x18, 0xFFFFFFFF);
    EXPECT(growth_wanted(superblock, 1ULL << 40) == 0);
}

int main(void)
{
    test_records();
    test_numbers();
    test_crc32();
    test_sentinels();
    test_emergency();
    test_environment_file();
    test_last_words();
    test_boot_id();
    test_identity();
    test_environment();
    test_machine_id();
    test_frames();
    test_boxes();
    test_stop_line();
    test_kernel_log();
    test_exit_words();
    test_config();
    test_settings();
    test_limits();
    test_a_hard_limit_that_was_given_stays();
    test_fields();
    test_config_of_volumes();
    test_config_of_docker();
    test_signal_sets();
    test_config_of_networks();
    test_config_of_set_up_refused();
    test_config_of_hosts();
    test_hosts();
    test_hosts_of_a_fork();
    test_thaw();
    test_start_block();
    test_build_id();
    test_in_root();
    test_trees();
    test_tree_copy();
    test_first_use();
    test_stages();
    test_at_once();
    test_an_agent_that_is_not_wanted();
    test_config_disk();
    test_folders();
    test_growth();
    (void)fprintf(stderr, failures == 0 ? "unit: all as it should be\n" : "unit: failed\n");
    return failures == 0 ? 0 : 1;
}
