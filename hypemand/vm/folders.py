# SPDX-License-Identifier: Apache-2.0
"""Names in the folder of what lasts of a VM. (A module of its own: the commands of a unit's end import it,
which are to start at once.)"""

STANDBY, OLD_STANDBY = "standby", "standby.old"
RECORD = "snapshot.json"
"""In these: `standbyfiles`, `saved`."""
REVERT = "revert"
"""What takes the place of these, and of the disk: `revert`."""
WARM = "warm"
STALLED = "stalled"
"""In the runtime folder: the guest of this run goes on from a template (launcher/warm.c), or has not done so,
and boots (guest/console/trial.c). See `runrecord.has_note`."""
