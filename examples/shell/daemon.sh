#!/bin/sh
# Fills the files of a bound directory from a directory of full files.
#
# usage: daemon.sh SOCKET DIR SOURCEDIR
#
# Start it beside `lacuna bind DIR --devnode SOCKET`. It prints `ready` once
# reads of DIR may begin, and runs until it is killed or the devnode goes away.
# It needs socat; the rest is POSIX but for `od -t u8` (GNU, BSD).
# docs/devnode.md is the protocol.
#
# socat makes the connection and runs this script again at its other end, with
# standard input and output as a second SOCK_SEQPACKET socket (type=5): each
# write is one command, each read gets one message. The script and the dd that
# it calls are below socat in the process tree, so their writes are let through.
set -u

if [ "${LACUNA_DAEMON:-}" != connected ]; then
	if [ $# -ne 3 ]; then
		echo "usage: daemon.sh SOCKET DIR SOURCEDIR" >&2
		exit 2
	fi
	LACUNA_DAEMON=connected LACUNA_SCRIPT=$0
	DIR=$(cd "$2" && pwd -P) && SOURCEDIR=$(cd "$3" && pwd -P) || exit 1
	export LACUNA_DAEMON LACUNA_SCRIPT DIR SOURCEDIR
	# Descriptor 3 is where `ready` goes. A comma or colon in SOCKET is
	# socat's to interpret.
	exec 3>&1
	exec socat "UNIX-CONNECT:$1,type=5" 'SYSTEM:exec sh "$LACUNA_SCRIPT",type=5'
fi

# Without a name it goes with this script, however that ends.
message=$(mktemp) || exit 1
exec 4<>"$message"
rm "$message"
message=/dev/fd/4

# fill ID OFF LEN NAME: copies whole blocks of 4096 bytes, the last one being cut
# by the end of the source. conv=notrunc: the file must keep its size.
fill() {
	if dd if="$SOURCEDIR/$4" of="$DIR/$4" bs=4096 conv=notrunc \
		skip=$(($2 / 4096)) seek=$(($2 / 4096)) count=$((($3 + 4095) / 4096)) 2>/dev/null; then
		echo "done $1"
	else
		echo "done $1 EIO"
	fi
}

echo "dir $DIR"
echo "tag shell"
echo bind
echo sync # answered when the commands before it are obeyed

ready=
while :; do
	# One read is one message: a record of 280 bytes, or a shorter text.
	dd of="$message" bs=4096 count=1 2>/dev/null || exit 1
	case $(wc -c <"$message" | tr -d ' ') in
	0)
		echo "the devnode has closed the connection" >&2
		exit 1
		;;
	280)
		# struct: u64 id, u64 off, u64 len, char path[255], one byte
		# shellcheck disable=SC2046 # three numbers
		set -- $(od -A n -t u8 -N 24 "$message")
		fill "$1" "$2" "$3" "$(tail -c +25 "$message" | tr -d '\0')"
		;;
	*)
		if [ "$(cat "$message")" = "ok sync" ]; then
			ready=yes
			echo ready >&3
		else
			cat "$message" >&2
			echo >&2
			[ -n "$ready" ] || exit 1
		fi
		;;
	esac
done
