// SPDX-License-Identifier: Apache-2.0
#include "bootid.h"

#include "files.h"
#include "inroot.h"
#include "runfolder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define FILE_NAME "boot"

/* The id of the command line, which says that the file is of this boot and not of an image; a blank; the id
 * that the guest has now. */
enum { FILE_LENGTH = 2 * BOOT_ID_LENGTH + 2 };

bool boot_id_valid(const char *text)
{
    return strlen(text) == BOOT_ID_LENGTH && strspn(text, "0123456789abcdef") == BOOT_ID_LENGTH;
}

bool boot_id_parse(const char *command_line, char boot[BOOT_ID_LENGTH + 1])
{
    static const char key[] = "hypeman.boot=";
    for (const char *word = command_line; *word != '\0';) {
        word += strspn(word, " \n");
        size_t length = strcspn(word, " \n");
        if (length == sizeof key - 1 + BOOT_ID_LENGTH && memcmp(word, key, sizeof key - 1) == 0) {
            const char *id = word + sizeof key - 1;
            if (strspn(id, "0123456789abcdef") < BOOT_ID_LENGTH)
                return false;
            memcpy(boot, id, BOOT_ID_LENGTH);
            boot[BOOT_ID_LENGTH] = '\0';
            return true;
        }
        word += length;
    }
    return false;
}

bool boot_id_read(char boot[BOOT_ID_LENGTH + 1])
{
    char line[4097];
    return file_read("/proc/cmdline", line, sizeof line) >= 0 && boot_id_parse(line, boot);
}

bool boot_id_write(const char *boot, struct reason *why)
{
    char text[FILE_LENGTH + 1];
    char first[BOOT_ID_LENGTH + 1];
    if (!boot_id_read(first))
        return refuse(why, "the kernel command line has no hypeman.boot=");
    (void)snprintf(text, sizeof text, "%s %s\n", first, boot);
    int run = folder_make(RUN_FOLDER, 0755) ? open(RUN_FOLDER, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    bool written = run >= 0 && file_replace(run, FILE_NAME, text);
    if (!written)
        (void)refuse(why, "cannot write " RUN_FOLDER "/" FILE_NAME ": %s", strerror(errno));
    close_fd(&run);
    return written;
}

void boot_id_renew(int run, char boot[BOOT_ID_LENGTH + 1])
{
    char text[FILE_LENGTH + 1];
    char first[BOOT_ID_LENGTH + 1];
    const char *path = run == AT_FDCWD ? RUN_FOLDER "/" FILE_NAME : FILE_NAME;
    if (file_read_at(run, path, text, sizeof text) != FILE_LENGTH || text[FILE_LENGTH - 1] != '\n')
        return;
    text[FILE_LENGTH - 1] = '\0';
    const char *now = text + BOOT_ID_LENGTH + 1;
    if (boot_id_valid(now) && boot_id_read(first) && text[BOOT_ID_LENGTH] == ' ' &&
        memcmp(text, first, BOOT_ID_LENGTH) == 0)
        memcpy(boot, now, BOOT_ID_LENGTH + 1);
}

bool boot_id_current(char boot[BOOT_ID_LENGTH + 1])
{
    if (!boot_id_read(boot))
        return false;
    boot_id_renew(AT_FDCWD, boot);
    return true;
}
