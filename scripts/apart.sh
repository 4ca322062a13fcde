#!/bin/sh
# Runs a test binary in a mount namespace of its own, where that may be made. A new
# namespace holds a copy of every mount of the one that it is made in, so tests of one
# package that make namespaces would keep the mounts of another's in use.
if unshare --mount --propagation private true 2>/dev/null; then
	exec unshare --mount --propagation private "$@"
fi
exec "$@"
