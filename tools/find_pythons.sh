#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Print the oldest and the newest of the Pythons 3.10 to 3.13 on this machine, once each.
# A name on the PATH may be a version manager's stand-in that does not run: it is tried.
found=
for minor in 10 11 12 13; do
    for python in python3.$minor "$HOME"/.pyenv/versions/3.$minor.*/bin/python3.$minor \
        "${PYENV_ROOT:-/nonexistent}"/versions/3.$minor.*/bin/python3.$minor; do
        if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            found="$found $python"
            break
        fi
    done
done
# shellcheck disable=SC2086
set -- ${found:-python3}
first=$1
while [ $# -gt 1 ]; do shift; done
if [ "$first" = "$1" ]; then echo "$first"; else echo "$first $1"; fi
