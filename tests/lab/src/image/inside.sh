# Runs a command inside an image that is being built, as root, with this machine's network.
#
# Expects mount and process namespaces of its own, so that nothing of this is left behind.
#   $1 root file system    $2 package cache    $3 command for the image's shell; standard input is passed on
set -eu
umask 022
root=$1 cache=$2 command=$3

mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/run/lock"
for directory in lists archives; do
    mkdir -p "$cache/$directory/partial"
done
mount --bind "$cache/lists" "$root/var/lib/apt/lists"
mount --bind "$cache/archives" "$root/var/cache/apt/archives"
cp "$cache/settings" "$root/run/apt.conf"

# The image's own is put back afterwards, unless the command made another. A link leads into /run, which is empty until
# a guest runs.
resolver=$root/etc/resolv.conf
if [ -L "$resolver" ]; then
    chroot "$root" sh -euc 'cd /etc; file=$(readlink resolv.conf); mkdir -p "$(dirname "$file")"; cat >"$file"' </etc/resolv.conf
else
    [ ! -e "$resolver" ] || cp --archive "$resolver" "$root/run/resolv.conf"
    cat /etc/resolv.conf >"$resolver"
fi

# Keeps package scripts from starting services (invoke-rc.d(8), deb-systemd-invoke(1)).
policy=$root/usr/sbin/policy-rc.d own_policy=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    own_policy=yes
fi

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive APT_CONFIG=/run/apt.conf
code=0
chroot "$root" sh -euc "cd / && $command" || code=$?

[ -z "$own_policy" ] || rm -f "$policy"
if [ ! -L "$resolver" ] && cmp --quiet /etc/resolv.conf "$resolver"; then
    rm -f "$resolver"
    [ ! -e "$root/run/resolv.conf" ] || mv "$root/run/resolv.conf" "$resolver"
fi
exit "$code"
