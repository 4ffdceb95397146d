#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# What the C library makes of the module: getent with nothing but it to ask.
#
# usage: getent.sh FOLDER   with the module in it, which reads FOLDER/hosts
set -eu

folder=$(realpath "$1")
failed=0

ask() {
    LD_LIBRARY_PATH=$folder getent --service=hypemand "$@" | tr -s '[:blank:]' ' '
}

# expect WANTED ARGUMENT...
expect() {
    wanted=$1
    shift
    got=$(ask "$@")
    [ "$got" = "$wanted" ] && return
    printf 'getent %s: "%s" instead of "%s"\n' "$*" "$got" "$wanted" >&2
    failed=1
}

printf '10.0.0.2\tweb web.hypeman\nfd00::2\tweb web.hypeman\n10.0.0.3\tdb db.hypeman\n' >"$folder/hosts"
# more addresses than fit into the buffer that the C library begins with
for i in $(seq 250); do printf '10.1.0.%d\tmany\n' "$i"; done >>"$folder/hosts"

expect 'fd00::2 web web.hypeman' hosts web
expect '10.0.0.3 db db.hypeman' hosts db.hypeman
expect '10.0.0.3 db db.hypeman' hosts 10.0.0.3
expect 'fd00::2 web web.hypeman' hosts fd00::2
expect '' hosts nobody
expect '' hosts 10.0.0.4
expect '10.0.0.3 STREAM db
10.0.0.3 DGRAM 
10.0.0.3 RAW ' ahosts DB
[ "$(ask ahosts many | grep -c STREAM)" = 250 ] || { echo 'many: not all of its 250 addresses' >&2; failed=1; }
rm "$folder/hosts"
expect '' hosts web
[ $failed = 0 ] && echo 'getent: all as it should be'
exit $failed
