# Holds a guest's disk mounted, in a mount namespace of its own, and boots the guest in it when told to.
#
# Nothing is mounted for anybody else, so nothing can be left behind: when the last process of the guest is gone, so is
# the mount, however it went. If the lab dies before it says `boot`, the end of its pipe ends this too.
#
# Run from the runtime's root directory.
#   $1 the guest's number          $4 extra group file to join first, or nothing
#   $2 overlayfs options           $5 the guest's network namespace, a path
#   $3 control group, below the root of the version 2 hierarchy
#   $6 machine name                $7 host name
#   further: `--setenv=NAME` for each variable of our own that the guest's first process is to have
set -eu
vmid=$1 options=$2 group=/sys/fs/cgroup/$3 extra=$4 network=$5 machine=$6 hostname=$7
shift 7

[ -z "$extra" ] || echo 0 >"$extra"

# A guest is given the version 2 hierarchy alone, also on a machine that still has version 1 beside it.
if [ "$(stat --file-system --format=%T /sys/fs/cgroup)" != cgroup2fs ]; then
    umount --recursive --lazy /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
echo 0 >"$group/launch/cgroup.procs"

# systemd-nspawn's locks and mount points, which it leaves behind when it is killed.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn

# LIBMOUNT_FORCE_MOUNT2: the newer system calls allow no more than 255 bytes for `lowerdir`.
LIBMOUNT_FORCE_MOUNT2=always mount -t overlay -o "$options" overlay "guests/$vmid/root"

echo "$$"
read -r order
[ "$order" = boot ]
exec >/dev/null

boot() {
    echo 0 >"$group/cgroup.procs"
    # As with a network of systemd-nspawn's own making: /sys shows the guest's network, /proc/sys/net is writable.
    export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
    # The limit on open files is systemd's own, which is the most that dbus-daemon asks for.
    exec systemd-nspawn --quiet --boot --register=no --keep-unit --settings=no \
        --machine="$machine" --hostname="$hostname" --directory="guests/$vmid/root" \
        --network-namespace-path="$network" --capability=CAP_NET_ADMIN --rlimit=RLIMIT_NOFILE=1024:524288 \
        --link-journal=no --resolv-conf=off --timezone=off --console=read-only "$@"
}

# 133 is how systemd-nspawn says that the guest wants to be rebooted. The log keeps what is printed first: at most 4096
# reads of at most 1 KiB, and the rest is swallowed.
while :; do
    code=0
    (boot "$@") || code=$?
    [ "$code" -eq 133 ] || exit "$code"
done </dev/null 2>&1 | {
    dd of="guests/$vmid/console.log" bs=1k count=4096 status=none
    exec cat >/dev/null
}
