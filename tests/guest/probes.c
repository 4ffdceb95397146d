// SPDX-License-Identifier: Apache-2.0
/* Readiness checks against sockets, processes and lines of their own. Exits 1 if anything is not as it should
 * be. */
#include "../expect.h"
#include "clock.h"
#include "probe.h"

#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void ignore(void *context, const struct reason *why)
{
    *(struct reason *)context = *why;
}

/* --- patterns --- */

static bool matches(const char *pattern_text, const char *text)
{
    static struct pattern pattern;
    static struct matcher matcher;
    struct reason why = {""};
    if (!pattern_compile(&pattern, pattern_text, &why)) {
        (void)fprintf(stderr, "%s: %s\n", pattern_text, why.words);
        failures++;
        return false;
    }
    matcher_start(&matcher, &pattern);
    for (const char *at = text; *at != '\0'; at++)
        (void)matcher_feed(&matcher, (uint8_t)*at);
    return matcher.matched;
}

static void test_patterns_match(void)
{
    static const struct {
        const char *pattern;
        const char *text;
        bool matches;
    } cases[] = {
        {"ready", "now ready", true},
        {"ready", "read\ny", false},
        {"^ready", "is ready", false},
        {"^ready", "x\nready", true},
        {"ready$", "ready\n", true},
        {"ready$", "ready", false}, /* The line goes on. */
        {"ready$", "ready.\n", false},
        {"ready$", "ready\r\n", true},
        {"ready$", "ready\r.\n", false},
        {"^$", "x\n\n", true},
        {"a.c", "abc", true},
        {"a.c", "a\nc", false},
        {"a\\.c", "abc", false},
        {"ab*c", "ac", true},
        {"ab*c", "abbbc", true},
        {"ab+c", "ac", false},
        {"ab+c", "abbc", true},
        {"ab?c", "abbc", false},
        {"ab?c", "abc", true},
        {"cat|dog|bird", "a bird", true},
        {"cat|dog|bird", "a bir", false},
        {"(ab|cd)+e", "abcdabe", true},
        {"^(ab|cd)+e", "abcxe", false},
        {"x(a|)y", "xy", true},
        {"((a*)*)*b", "aaab", true},
        {"[0-9]+ ms", "in 120 ms", true},
        {"[^0-9]x", "1x", false},
        {"[]x]y", "]y", true},
        {"[a-]b", "-b", true},
        {"[\\]]b", "]b", true},
        {"\\d\\d:\\d\\d", "at 12:34", true},
        {"\\w+\\s\\w+$", "a bc\n", true},
        {"\\t", "a\tb", true},
        {"\\(x\\)", "(x)", true},
        {"gr\xc3\xbc\xc3\x9f", "gr\xc3\xbc\xc3\x9f", true},
        {"a\\|b", "a|b", true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        if (matches(cases[i].pattern, cases[i].text) != cases[i].matches) {
            (void)fprintf(stderr, "pattern %s on %s\n", cases[i].pattern, cases[i].text);
            failures++;
        }
    }
}

static void test_patterns_refused(void)
{
    static const char *const wrong[] = {"",   "*a",  "a**", "(a", "a)",  "[a",    "a{2}",
                                        "a]", "\\n", "\\1", "\\", "|*a", "[z-a]", "[a-\\d]"};
    static struct pattern pattern;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct reason why = {""};
        EXPECT(!pattern_compile(&pattern, wrong[i], &why));
        EXPECT(why.words[0] != '\0');
    }
    char deep[2 * PATTERN_DEPTH_MAX + 4];
    memset(deep, '(', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    struct reason why = {""};
    EXPECT(!pattern_compile(&pattern, deep, &why));
}

/* What backtracking takes for ever: here no byte costs more than the pattern's length. */
static void test_no_pattern_is_slow(void)
{
    static struct pattern pattern;
    static struct matcher matcher;
    struct reason why = {""};
    EXPECT(pattern_compile(&pattern, "((a*)*(a|aa)*)*(x+x+)+y", &why));
    matcher_start(&matcher, &pattern);
    for (int i = 0; i < 100000; i++) {
        (void)matcher_feed(&matcher, i % 2 == 0 ? 'a' : 'x');
        EXPECT(matcher.state_count <= pattern.size);
    }
    EXPECT(!matcher.matched);
    EXPECT(matcher_feed(&matcher, 'x') || matcher_feed(&matcher, 'y'));
}

static bool feeds(const char *pattern, const char *text, size_t piece)
{
    static struct probe probe;
    struct reason why = {""};
    memset(&probe, 0, sizeof probe);
    EXPECT(pattern_compile(&probe.pattern, pattern, &why));
    matcher_start(&probe.matcher, &probe.pattern);
    bool found = false;
    for (size_t at = 0; at < strlen(text); at += piece) {
        size_t left = strlen(text) - at;
        found = console_feed(&probe, text + at, left < piece ? left : piece);
    }
    return found;
}

/* Whatever bounds there are between reads. */
static void test_console_lines(void)
{
    for (size_t piece = 1; piece < 32; piece++) {
        EXPECT(!feeds("mode=exec", "HYPEMAN-PROGRAM-START mode=exec\nHYPE mode\n", piece));
        EXPECT(feeds("^HYPE mode$", "HYPEMAN-STAGE x\nHYPE mode\n", piece));
        EXPECT(feeds("^HYPEMAX", "HYPEMAN-\nHYPEMAX\n", piece));
        EXPECT(feeds("listening on :\\d+$", "start\nlistening on :8080\n", piece));
        EXPECT(feeds("> ", "HYPEMAN-\n> ", piece));
    }
}

/* --- tcp --- */

static int listen_on(uint32_t address, uint16_t *port)
{
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
    socklen_t size = sizeof own;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&own, sizeof own) != 0 ||
        getsockname(fd, (struct sockaddr *)&own, &size) != 0)
        abort();
    *port = ntohs(own.sin_port);
    return fd;
}

static void test_tcp(void)
{
    uint16_t port;
    char words[80];
    union address address;
    struct reason why = {""};
    int fd = listen_on(INADDR_ANY, &port);
    (void)snprintf(words, sizeof words, "nothing listens on port %u", port);
    EXPECT(tcp_find(port, true, &address, &why) == PROBE_FAILED); /* Bound alone is not enough. */
    EXPECT_TEXT(why.words, words);
    EXPECT(listen(fd, 1) == 0);
    EXPECT(tcp_find(port, false, &address, &why) == PROBE_PASSED);
    EXPECT(address.v4.sin_addr.s_addr == htonl(INADDR_LOOPBACK) && address.v4.sin_port == htons(port));
    close(fd);
    fd = listen_on(INADDR_LOOPBACK, &port);
    EXPECT(listen(fd, 1) == 0);
    EXPECT(tcp_find(port, true, &address, &why) == PROBE_PASSED);
    EXPECT(tcp_find(port, false, &address, &why) == PROBE_FAILED);
    (void)snprintf(words, sizeof words, "port %u listens on a loopback address only", port);
    EXPECT_TEXT(why.words, words);
    close(fd);
}

static void test_tcp6(void)
{
    struct sockaddr_in6 own = {.sin6_family = AF_INET6};
    socklen_t size = sizeof own;
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (const struct sockaddr *)&own, sizeof own) != 0)
        return; /* This machine has no IPv6. */
    EXPECT(getsockname(fd, (struct sockaddr *)&own, &size) == 0 && listen(fd, 1) == 0);
    union address address;
    struct reason why = {""};
    EXPECT(tcp_find(ntohs(own.sin6_port), false, &address, &why) == PROBE_PASSED);
    EXPECT(address.v6.sin6_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&address.v6.sin6_addr));
    close(fd);
}

/* --- http --- */

static void test_http_status(void)
{
    static const struct {
        const char *answer;
        int status;
    } cases[] = {
        {"", 0},
        {"HTT", 0},
        {"HTTP/1.1 20", 0},
        {"HTTP/1.1 200", 0},
        {"HTTP/1.1 200 OK\r\n", 200},
        {"HTTP/1.0 404\r\n", 404},
        {"HTTP/1.1 2000 OK", -1},
        {"HTTP/1.1 099 X", -1},
        {"HTTP/1.1 2x0 OK\r\n", -1},
        {"HTTP/2 200\r\n", -1},
        {"SSH-2.0-x", -1},
        {"HTTP/1.1x200 OK\r\n", -1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        EXPECT(http_status(cases[i].answer, strlen(cases[i].answer)) == cases[i].status);
}

/* A server for one connection: it reads the request, then writes `answer`, `drip` ms between its bytes. */
static pid_t serve(int fd, const char *answer, int drip)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    char bytes[2048] = "";
    int one = accept(fd, NULL, NULL);
    bool right =
        recv(one, bytes, sizeof bytes - 1, 0) > 0 && strncmp(bytes, "GET /health?x HTTP/1.1\r\n", 24) == 0;
    for (const char *at = answer; *at != '\0'; at++) {
        if (send(one, at, 1, MSG_NOSIGNAL) != 1)
            break;
        (void)poll(NULL, 0, drip);
    }
    _exit(right ? 0 : 1);
}

static enum probe_state request(const char *answer, int drip, int status, int wait_ms, struct reason *why)
{
    static struct probe probe;
    static const struct probe_place place = {.folder = "/"};
    struct check check = {
        .kind = CHECK_HTTP, .interval_ms = 1000, .path = "/health?x", .status = status, .loopback = true};
    int fd = listen_on(INADDR_LOOPBACK, &check.port);
    EXPECT(listen(fd, 1) == 0);
    pid_t server = serve(fd, answer, drip);
    EXPECT(probe_open(&probe, &check, &place, why));
    enum probe_state state = probe_begin(&probe);
    EXPECT(probe.deadline <= clock_ms() + CHECK_ATTEMPT_MS);
    probe.deadline = clock_ms() + wait_ms;
    while (state == PROBE_PENDING) {
        struct pollfd wanted = {.fd = probe.fd, .events = probe.events};
        state = probe_step(&probe, poll(&wanted, 1, deadline_timeout(probe.deadline)) > 0);
    }
    *why = probe.why;
    EXPECT(probe.fd == -1);
    (void)kill(server, SIGKILL);
    (void)waitpid(server, NULL, 0);
    close(fd);
    return state;
}

static void test_http(void)
{
    struct reason why = {""};
    EXPECT(request("HTTP/1.1 200 OK\r\n\r\n", 0, 0, 5000, &why) == PROBE_PASSED);
    EXPECT(request("HTTP/1.1 204 No\r\n\r\n", 1, 204, 5000, &why) == PROBE_PASSED);
    EXPECT(request("HTTP/1.1 503 No\r\n\r\n", 0, 0, 5000, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "http: status 503");
    EXPECT(request("HTTP/1.1 200 OK\r\n\r\n", 0, 204, 5000, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "http: status 200");
    EXPECT(request("220 mail ESMTP\r\n", 0, 0, 5000, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "http: the answer is not one of HTTP/1");
    EXPECT(request("HTTP/1.1", 0, 0, 5000, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "http: the connection was closed without an answer");
    /* One that drips, for longer than an attempt may take. */
    EXPECT(request("HTTP/1.1 200 OK\r\n\r\n", 100, 0, 300, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "http: no answer in time");
}

static void test_http_without_a_listener(void)
{
    static struct probe probe;
    struct reason why = {""};
    struct check check = {.kind = CHECK_HTTP, .interval_ms = 1000, .path = "/", .loopback = true};
    int fd = listen_on(INADDR_LOOPBACK, &check.port);
    EXPECT(probe_open(&probe, &check, NULL, &why));
    EXPECT(probe_begin(&probe) == PROBE_FAILED && probe.cheap && probe.fd == -1);
    close(fd);
}

/* --- exec --- */

static enum probe_state execute(const char *script, int wait_ms, struct reason *why)
{
    static struct probe probe;
    static char path[] = "PATH=/usr/bin:/bin";
    static char *const environment[] = {path, NULL};
    static const struct probe_place place = {.environment = environment, .folder = "/"};
    struct check check = {
        .kind = CHECK_EXEC, .interval_ms = 1000, .argv = {strdup("sh"), strdup("-c"), strdup(script)}};
    if (script == NULL)
        abort();
    EXPECT(probe_open(&probe, &check, &place, why));
    enum probe_state state = probe_begin(&probe);
    probe.deadline = clock_ms() + wait_ms;
    while (state == PROBE_PENDING) {
        struct pollfd wanted = {.fd = probe.fd, .events = probe.events};
        state = probe_step(&probe, poll(&wanted, 1, deadline_timeout(probe.deadline)) > 0);
    }
    *why = probe.why;
    for (size_t i = 0; i < 3; i++)
        free(check.argv[i]);
    EXPECT(probe.fd == -1 && probe.verdict == -1);
    return state;
}

static void test_exec(void)
{
    struct reason why = {""};
    EXPECT(execute("exit 0", 5000, &why) == PROBE_PASSED);
    EXPECT(execute("exit 3", 5000, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "exec: exited with code 3");
    EXPECT(execute("kill -9 $$", 5000, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "exec: killed by signal 9 (KILL)");
    int64_t before = clock_ms();
    EXPECT(execute("trap '' TERM; sleep 60", 200, &why) == PROBE_FAILED);
    EXPECT_TEXT(why.words, "exec: it did not end in time and was killed");
    EXPECT(clock_ms() - before < 30000);
}

/* What an attempt leaves in its group is gone with it: else every attempt would leave one more. */
static void test_exec_leaves_nothing(void)
{
    struct reason why = {""};
    int ends[2];
    char script[64];
    char byte;
    if (pipe(ends) != 0)
        abort();
    (void)snprintf(script, sizeof script, "sleep 60 <&0 >&%d & exit 1", ends[1]);
    EXPECT(execute(script, 5000, &why) == PROBE_FAILED);
    close(ends[1]);
    struct pollfd ended = {.fd = ends[0], .events = POLLIN};
    EXPECT(poll(&ended, 1, 20000) == 1 && read(ends[0], &byte, 1) == 0);
    close(ends[0]);
}

static void test_exec_not_found(void)
{
    static struct probe probe;
    static char *const environment[] = {NULL};
    static const struct probe_place place = {.environment = environment, .folder = "/"};
    struct check check = {.kind = CHECK_EXEC, .interval_ms = 1000, .argv = {strdup("/no/such")}};
    struct reason why = {""};
    struct reason told = {""};
    EXPECT(probe_open(&probe, &check, &place, &why));
    EXPECT(probe_wait(&probe, ignore, &told) == PROBE_FAILED);
    EXPECT_TEXT(probe.why.words, "exec: program /no/such not found: No such file or directory");
    free(check.argv[0]);
}

/* --- notify --- */

static void test_notify_parse(void)
{
    static const struct {
        const char *datagram;
        bool ready;
        const char *status;
    } cases[] = {
        {"READY=1", true, ""},
        {"READY=1\n", true, ""},
        {"STATUS=up\nREADY=1\nMAINPID=3", true, "up"},
        {"READY=10", false, ""},
        {"READY=0", false, ""},
        {"XREADY=1", false, ""},
        {"STATUS=", false, ""},
        {"STATUS=loading 30 %", false, "loading 30 %"},
        {"", false, ""},
        {"\n\n\n", false, ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct reason why = {""};
        EXPECT(notify_parse(cases[i].datagram, strlen(cases[i].datagram), &why) == cases[i].ready);
        EXPECT_TEXT(why.words, cases[i].status);
    }
}

static void notify(const char *path, const char *datagram, size_t size)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    (void)snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    EXPECT(sendto(fd, datagram, size, 0, (const struct sockaddr *)&address, sizeof address) == (ssize_t)size);
    close(fd);
}

static void test_notify(void)
{
    static struct probe probe;
    static char large[16384];
    char folder[] = "/tmp/probes.XXXXXX";
    char path[sizeof folder + 8];
    struct check check = {.kind = CHECK_NOTIFY};
    struct reason why = {""};
    if (mkdtemp(folder) == NULL)
        abort();
    (void)snprintf(path, sizeof path, "%s/notify", folder);
    probe = (struct probe){.check = &check, .fd = -1, .deadline = NO_DEADLINE};
    EXPECT(notify_open(&probe, path, &why));
    EXPECT(probe_begin(&probe) == PROBE_PENDING && probe_step(&probe, true) == PROBE_PENDING);
    notify(path, "STATUS=half", 11);
    EXPECT(probe_step(&probe, true) == PROBE_PENDING);
    EXPECT_TEXT(probe.why.words, "half");
    /* What is larger than a datagram of sd_notify is none, whatever it begins with. */
    memset(large, '\n', sizeof large);
    memcpy(large, "READY=1\n", 8);
    notify(path, large, sizeof large);
    EXPECT(probe_step(&probe, true) == PROBE_PENDING);
    notify(path, "READY=1", 7);
    EXPECT(probe_step(&probe, true) == PROBE_PASSED);
    close(probe.fd);
    (void)unlink(path);
    (void)rmdir(folder);
}

/* --- the record, and the pace --- */

static void test_check(void)
{
    struct check check;
    struct reason why = {""};
    char http[] = "check=http,interval=250,port=80,path=/a%252Cb%2C,status=204,new=1";
    EXPECT(check_parse(http, &check, &why));
    EXPECT(check.kind == CHECK_HTTP && check.interval_ms == 250 && check.port == 80 && check.status == 204);
    EXPECT(strcmp(check.path, "/a%2Cb,") == 0 && !check_comes_first(&check));
    char exec[] = "check=exec,arg=a,arg=b%2Cc";
    EXPECT(check_parse(exec, &check, &why) && strcmp(check.argv[1], "b,c") == 0 && check.argv[2] == NULL);
    char log[] = "check=log,pattern=a|b";
    EXPECT(check_parse(log, &check, &why) && check_comes_first(&check));
    static const char *const wrong[] = {"",
                                        "check=udp",
                                        "check=tcp",
                                        "check=tcp,port=0",
                                        "check=tcp,port=65536",
                                        "check=http,port=80",
                                        "check=http,port=80,path=/a b",
                                        "check=http,port=80,path=/a%0d%0aX:",
                                        "check=exec",
                                        "check=log",
                                        "check=log,pattern=(",
                                        "check=tcp,port=1,interval=0",
                                        "check"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        char *copy = strdup(wrong[i]);
        why.words[0] = '\0';
        EXPECT(!check_parse(copy, &check, &why) && why.words[0] != '\0');
        free(copy);
    }
}

static void test_pace(void)
{
    const struct check check = {.interval_ms = 500};
    struct probe probe = {.check = &check, .cheap = true};
    EXPECT(probe_pause(&probe, 0) == 2 && probe_pause(&probe, 12800) == 100);
    EXPECT(probe_pause(&probe, 1000000) == 500);
    probe.cheap = false;
    EXPECT(probe_pause(&probe, 0) == 50 && probe_pause(&probe, 1600) == 200);
    EXPECT(probe_pause(&probe, 1000000) == 500);
}

int main(void)
{
    test_patterns_match();
    test_patterns_refused();
    test_no_pattern_is_slow();
    test_console_lines();
    test_tcp();
    test_tcp6();
    test_http_status();
    test_http();
    test_http_without_a_listener();
    test_exec();
    test_exec_leaves_nothing();
    test_exec_not_found();
    test_notify_parse();
    test_notify();
    test_check();
    test_pace();
    if (failures > 0)
        (void)fprintf(stderr, "%d failures\n", failures);
    return failures > 0;
}
