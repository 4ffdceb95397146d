// SPDX-License-Identifier: Apache-2.0
#include "bootid.h"

#include "files.h"

#include <string.h>

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
