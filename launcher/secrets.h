// SPDX-License-Identifier: Apache-2.0
/* The disk with the guest's secrets (docs/protocol.md, "Files disk"): made of the unit's credentials, which
 * systemd has read and decrypted for this start, in memory that has no name. */
#pragma once

/** Make the disk of these credentials, names joined by commas, at FD_SECRETS: read only. Returns 0 or -1; it
 * has said why. */
int make_secrets(const char *names);
