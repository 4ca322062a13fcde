#!/bin/sh
# debian.sh: makes the layers of an image as a builder would, step by step: a Debian
# by debootstrap, then what apt-get adds to it. Prints the directory that has them as
# tars, in the order of their names. It is kept for the next run, below
# ${XDG_CACHE_HOME:-~/.cache}/lacuna, one for each release and month. It needs root
# and a Debian mirror; the first run takes minutes and some 3 GiB.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
release=stable

cache=${XDG_CACHE_HOME:-$HOME/.cache}/lacuna
made=$cache/debian-$release-$(date +%Y-%m)
if [ -d "$made" ]; then
	echo "$made"
	exit 0
fi
if [ "${1:-}" != inside ]; then
	# What is mounted goes with the namespace, however this ends.
	exec unshare --mount --propagation private "$0" inside
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/making-XXXXXX")
root=$work/root
trap 'umount -q "$root/proc" "$root/var/lib/apt/lists" "$root/var/cache/apt" || :; rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/tars"

# layer NAME TEST...: what of the tree is so, as a tar.
layer() {
	name=$1
	shift
	(cd "$root" && find . -xdev "$@" -print0 | sort -z) >"$work/names"
	tar -C "$root" --format=pax --numeric-owner --xattrs --pax-option=delete=atime,delete=ctime --no-recursion \
		--null --files-from="$work/names" -cf "$work/tars/$name.tar"
}

inside() {
	env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive http_proxy="${http_proxy:-}" \
		chroot "$root" "$@" </dev/null >&2
}

debootstrap --variant=minbase "$release" "$root" >&2
# What apt keeps for itself is no part of a layer.
rm -rf "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
layer 0-base
mount -t proc proc "$root/proc" # Java's installation looks into it
mount -t tmpfs tmpfs "$root/var/lib/apt/lists"
mount -t tmpfs tmpfs "$root/var/cache/apt"
inside apt-get -qq -o APT::Sandbox::User=root update

n=1
for package in python3 golang-src golang-go default-jre-headless default-jdk-headless git; do
	: >"$work/mark"
	inside apt-get -qq -y -o APT::Sandbox::User=root --no-install-recommends install "$package"
	# The time of an inode's last change cannot be set, so that these are all. What a
	# step removes, which is next to nothing, stays in the layers below.
	layer "$n-$package" -cnewer "$work/mark" ! -path ./proc ! -path ./var/lib/apt/lists ! -path ./var/cache/apt
	n=$((n + 1))
done

rm -rf "$cache/debian-$release-"*
mv -T "$work/tars" "$made" || [ -d "$made" ] # somebody else was as fast
echo "$made"
