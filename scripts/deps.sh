#!/bin/sh
# deps.sh test|demo|bench: sees that the programs are there which that target
# needs. As root it installs the missing ones with apt-get; otherwise it names
# them with their Debian packages and ends with status 1.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# One line each: the targets that need it, the program (or a file), the package.
list() {
	cat <<'EOF'
test,demo,bench  git                    git
test,demo,bench  /etc/ssl/certs/ca-certificates.crt  ca-certificates
test,bench       gcc                    gcc
test,bench       /usr/include/stdlib.h  libc6-dev
test,bench       nginx                  nginx-light
test             socat                  socat
test             python3                python3
test             gzip                   gzip
test             pigz                   pigz
test,bench       curl                   curl
test,bench       mkfs.ext4              e2fsprogs
test             mkfs.xfs               xfsprogs
test             mkfs.btrfs             btrfs-progs
test             losetup                util-linux
test             mkfs.erofs             erofs-utils
test,bench       /usr/include/zlib.h    zlib1g-dev
test             ps                     procps
test,bench       /usr/sbin/debootstrap   debootstrap
demo             find                   findutils
bench            rclone                 rclone
bench            fusermount3            fuse3
EOF
}

have() {
	case $1 in
	/*) [ -e "$1" ] ;;
	*) command -v "$1" >/dev/null 2>&1 ;;
	esac
}

target=${1:-}
case $target in
test | demo | bench) ;;
*)
	echo "usage: deps.sh test|demo|bench" >&2
	exit 2
	;;
esac

missing= packages=
while read -r targets what package; do
	case ,$targets, in
	*,"$target",*) ;;
	*) continue ;;
	esac
	if ! have "$what"; then
		missing="$missing $what"
		packages="$packages $package"
	fi
done <<EOF
$(list)
EOF
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "deps: make $target needs what is missing here:$missing" >&2
	echo "hint: apt-get install --no-install-recommends$packages" >&2
	exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
	echo "deps: make $target needs what is missing here:$missing" >&2
	echo "hint: there is no apt-get; install them by this system's own means" >&2
	exit 1
fi

# Packages such as nginx-light start their daemon when they are installed.
# Status 101 of this script is Debian's way to forbid that (invoke-rc.d(8));
# a machine that has such a script already has decided for itself.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	trap 'rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi

echo "deps: installing$packages"
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
# shellcheck disable=SC2086 # a list of package names
apt-get -qq install -y --no-install-recommends $packages </dev/null >/dev/null

for what in $missing; do
	if ! have "$what"; then
		echo "deps: $what is still missing after the installation" >&2
		exit 1
	fi
done
