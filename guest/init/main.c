// SPDX-License-Identifier: Apache-2.0
/* hypeman-init: PID 1 of the initrd. Whatever happens, it ends with an exit report and the power off.
 * Under another PID 1 `hypeman-init headers` sets up the kernel headers, and `hypeman-init ready` makes the
 * readiness check. */
#include "bootid.h"
#include "clock.h"
#include "config.h"
#include "devices.h"
#include "execmode.h"
#include "files.h"
#include "headers.h"
#include "headersworker.h"
#include "laststage.h"
#include "mounts.h"
#include "newowner.h"
#include "placement.h"
#include "poweroff.h"
#include "readiness.h"
#include "root.h"
#include "spawn.h"
#include "stages.h"
#include "sysctls.h"
#include "system.h"
#include "systemdmode.h"
#include "warmstart.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct machine {
    struct report report;
    struct ports ports;
    struct config config;
    struct warm_start warm;
    int64_t deadline; /* of devices */
    int initrd;
    struct agent_process agent;
};

/* The kernel found no console to open yet: keep 0 to 2 from becoming something else. */
static void fill_stdio(void)
{
    int fd;
    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    close_fd(&fd);
}

static bool read_config(struct machine *machine, struct reason *why)
{
    char path[DEVICE_PATH_SIZE];
    if (!wait_for_device(find_block, "hypeman-config", path, machine->deadline))
        return refuse(why, "no block device with the serial hypeman-config came up");
    return config_read(path, &machine->config, why);
}

static bool set_up_network(void *of, struct reason *why)
{
    const struct machine *machine = of;
    return network_setup(&machine->config.network, ROOT, machine->deadline, why);
}

static bool mount_volumes(void *of, struct reason *why)
{
    struct machine *machine = of;
    return volumes_mount(&machine->config.volumes, &machine->report, machine->deadline, why);
}

static bool place_volumes(void *of, struct reason *why)
{
    struct machine *machine = of;
    return volumes_place(&machine->config.volumes, &machine->report, ROOT, why);
}

/* Network and volumes, at once where both are wanted and neither needs the other. Without either it is
 * nothing at all. */
static bool set_up(struct machine *machine, struct reason *why)
{
    static const struct job network = {"network", set_up_network};
    static const struct job volumes = {"volumes", mount_volumes};
    static const struct job binds = {"binds", place_volumes};
    struct report *report = &machine->report;
    bool with_network = network_wanted(&machine->config.network);
    if (machine->config.volumes.count == 0)
        return !with_network || stage_run(network, machine, report, why);
    bool in_turn = !with_network || volumes_hold_etc(&machine->config.volumes);
    if (!in_turn)
        return stages_run(volumes, network, machine, report, why) && stage_run(binds, machine, report, why);
    return stage_run(volumes, machine, report, why) && stage_run(binds, machine, report, why) &&
           (!with_network || stage_run(network, machine, report, why));
}

/* What the host brings, in the root that was switched to. Without it this is no stage. */
static bool place_files(struct machine *machine, struct reason *why)
{
    const struct config *config = &machine->config;
    if (!config->files && config->secrets.count == 0)
        return true;
    report_stage(&machine->report, "files");
    return (!config->files || files_place(machine->deadline, why)) &&
           (config->secrets.count == 0 || secrets_place(&config->secrets, machine->deadline, why));
}

/* Everything from power on to the switched root. */
static bool boot(struct machine *machine, struct reason *why)
{
    struct report *report = &machine->report;
    report_stage(report, "mounts");
    if (!mounts_early(why))
        return false;
    fill_stdio();
    system_protect();
    system_loopback();
    power_off_prepare();
    agent_find(&machine->agent, "/hypeman-agent");
    if (!mounts_ahead(why) ||
        !freeze_point(&machine->warm, report, &machine->agent, &machine->ports.events, why))
        return false;
    crash_handlers_install(report->boot);
    machine->deadline = clock_ms() + DEVICE_WAIT_MS;
    report_stage(report, "config");
    if (!read_config(machine, why) || !warm_start_adapt(&machine->warm, &machine->config, why))
        return false;
    if (!machine->config.agent || machine->config.mode == MODE_SYSTEMD)
        agent_dismiss(&machine->agent);
    report_stage(report, "root");
    bool run_content = machine->config.mode == MODE_EXEC;
    bool other_root = volumes_hold_root(&machine->config.volumes);
    if (!root_mount(report, machine->deadline, why) ||
        (!other_root && !mounts_run(ROOT, run_content, report, why)) || !set_up(machine, why) ||
        (other_root && !mounts_run(ROOT, run_content, report, why)))
        return false;
    report_stage(report, "api");
    if (!root_enter(&machine->initrd, why) || !mounts_root(machine->config.mode == MODE_SYSTEMD, why) ||
        !warm_start_show(&machine->warm, why))
        return false;
    report_stage(report, "system");
    if (machine->config.headers)
        headers_status(HEADERS_PENDING, NULL);
    if (machine->config.mode == MODE_EXEC)
        system_open();
    if (!sysctls_set(machine->config.records, machine->config.size, why))
        return false;
    return system_name(machine->config.name, &machine->config.hosts, why) &&
           new_owner(&machine->config, machine->initrd, why) && place_files(machine, why);
}

static struct outcome run(struct machine *machine)
{
    struct outcome outcome = {.code = EXIT_GUEST_FAILED};
    if (!boot(machine, &outcome.why))
        return outcome;
    report_stage(&machine->report, "console");
    report_console(&machine->report);
    ports_open(&machine->ports);
    if (machine->config.mode == MODE_SYSTEMD) {
        const struct systemd_mode systemd = {.config = &machine->config,
                                             .report = &machine->report,
                                             .ports = &machine->ports,
                                             .initrd = machine->initrd,
                                             .agent = &machine->agent};
        return systemd_mode_run(&systemd);
    }
    const struct exec_mode mode = {.config = &machine->config,
                                   .report = &machine->report,
                                   .ports = &machine->ports,
                                   .agent = &machine->agent,
                                   .headers = headers_setup};
    return exec_mode_run(&mode);
}

static _Noreturn void init_main(void)
{
    static struct machine machine = {
        .report = {.console = -1, .boot = "00000000000000000000000000000000"},
        .ports = {-1, -1, -1},
        .initrd = -1,
        .agent = {.binary = -1, .socket = -1, .verdict = -1},
    };
    machine.report.port = &machine.ports.report;
    sigset_t signals = exec_mode_signals();
    (void)sigprocmask(SIG_SETMASK, &signals, NULL);
    (void)umask(022);
    struct outcome outcome = run(&machine);
    if (machine.ports.report < 0)
        ports_open(&machine.ports); /* The boot may have failed before it got to them. */
    report_exit(&machine.report, outcome.code, outcome.why.words);
    power_off(machine.report.console, machine.initrd, &machine.config.volumes);
}

int main(int argc, char **argv)
{
    if (getpid() == 1 && strcmp(argv[0], "/shutdown") == 0)
        last_stage(argc > 1 ? argv[1] : "");
    if (getpid() == 1)
        init_main();
    if (argc == 2 && strcmp(argv[1], "headers") == 0)
        return headers_worker_main();
    if (argc == 2 && strcmp(argv[1], "ready") == 0)
        return readiness_main();
    return systemd_tool_main(argc, argv);
}
