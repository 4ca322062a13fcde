#!/bin/sh
# fuzz.sh DURATION: runs every fuzz target of the module, one after the other.
set -eu
cd "$(dirname "$0")/.."
duration=${1:-60s}
ran=0
packages=$(go list ./...)
for pkg in $packages; do
	listed=$(go test -list '^Fuzz' "$pkg")
	for target in $(echo "$listed" | grep '^Fuzz' || true); do
		echo "fuzz: $target of $pkg for $duration"
		go test -run='^$' -fuzz="^$target\$" -fuzztime="$duration" -fuzzminimizetime=10x "$pkg"
		ran=$((ran + 1))
	done
done
echo "fuzz: $ran targets ran clean"
[ "$ran" -gt 0 ]
