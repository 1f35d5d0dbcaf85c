# A machine of a test: a root of its own over this host's, of which it changes nothing.
#
#   machine.sh DIRECTORY
#
# Runs in new namespaces for mounts, processes, IPC and network. What dpkg changes goes to memory; what a
# daemon writes goes below DIRECTORY/root. It ends with its stdin, and everything in it ends with it.
set -eu
base=$1
root=$base/root
mount --make-rprivate /
mkdir -p "$base/layer"
mount -t tmpfs none "$base/layer"
for link in bin sbin lib lib32 lib64; do
	if [ -L "/$link" ]; then cp -a "/$link" "$root/"; fi
done
for directory in bin sbin lib lib32 lib64 usr etc var/lib/dpkg; do
	if [ -L "/$directory" ] || [ ! -d "/$directory" ]; then continue; fi
	mkdir -p "$root/$directory" "$base/layer/$directory/upper" "$base/layer/$directory/work"
	mount -t overlay none "$root/$directory" \
		-o "lowerdir=/$directory,upperdir=$base/layer/$directory/upper,workdir=$base/layer/$directory/work"
done
mkdir -p "$root/dev" "$root/proc" "$root/var/log" "$root/run" "$root/root"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/dev/shm"
mount -t proc proc "$root/proc"
# This host may have the package itself: the machine begins without it.
chroot "$root" dpkg --no-triggers --purge understudy > /dev/null 2>&1 || true
rm -rf "$root/etc/understudy"
# By this the test knows that it looks into the machine, and not at the host.
touch "$root/machine-of-a-test"
# It is the first process of its machine: the shell also waits for those whose parents ended.
exec chroot "$root" /bin/bash -c 'echo made; while read -r _; do :; done'
