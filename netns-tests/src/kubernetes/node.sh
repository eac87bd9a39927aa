# Runs as process 1 of a node, in its own namespaces: gives it its own files, then runs containerd.
# $1 is the folder of the node's files, which the node sees as /run/node; $2 is its name.
set -e
files=$1
echo "$2" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=0755 node /run
mkdir -p /run/node /run/netns /run/etc/upper /run/etc/work
mount --bind "$files" /run/node

# The machine's own are hidden, so that nothing of a node is written there.
mount -t tmpfs -o mode=0755 node /var/lib
mount -t tmpfs -o mode=0755 node /var/log
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work node /etc
mkdir -p /etc/cni/net.d /var/lib/cni
cp /run/node/cni.conflist /etc/cni/net.d/10-lab.conflist
for directory in /var/lib/kubelet /var/lib/containerd /var/log/pods /var/log/containers; do
    mkdir -p "/run/node/files$directory" "$directory"
    mount --bind "/run/node/files$directory" "$directory"
done
# Volumes of pods have to reach into their containers.
mount --make-rshared /

# kubelet sets these for the whole machine: here it finds them set as it wants them.
while read -r name value; do
    copy=/run/sysctl-$(echo "$name" | tr / -)
    echo "$value" >"$copy"
    mount --bind "$copy" "/proc/sys/$name"
done <<END
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
END

containerd --config /run/node/containerd.toml >/run/node/containerd.log 2>&1 &
# Waiting also takes in what is left of processes whose parents have ended. A node ends with its containerd.
wait
