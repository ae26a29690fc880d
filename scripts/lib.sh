# Shared by the scripts of this folder: where things are, a registry on a free loopback port, running an image.
# Source it; it defines functions and the variables `repo` and `target`, and prints nothing.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=${CARGO_TARGET_DIR:-$repo/target}
case $target in /*) ;; *) target=$repo/$target ;; esac

# The binary under test: $LAYERWRIGHT, else the release build.
layerwright_binary() { echo "${LAYERWRIGHT:-$target/release/layerwright}"; }

free_port() {
    /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start_registry DIR: a docker-registry on a free loopback port with its files in DIR.
# Sets registry (host:port) and registry_pid; the caller ends it with stop_registry.
start_registry() {
    local dir=$1 port
    mkdir -p "$dir"
    port=$(free_port)
    cat >"$dir/config.yml" <<YAML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $dir/data}, delete: {enabled: true}}
http: {addr: 127.0.0.1:$port}
YAML
    docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 &
    registry_pid=$!
    registry=127.0.0.1:$port
    local tries
    for tries in $(seq 200); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return 0
        kill -0 "$registry_pid" 2>/dev/null || break
        sleep 0.05
    done
    echo "the registry did not start; its log: $dir/log" >&2
    return 1
}

stop_registry() { [[ -z ${registry_pid:-} ]] || { kill "$registry_pid" 2>/dev/null || true; wait "$registry_pid" 2>/dev/null || true; registry_pid=; }; }

# run_layout LAYOUT TAG [COMMAND...]: unpacks an image from an OCI layout with umoci and runs it with crun, in the
# network namespace of the caller. Two things that stop crun on many CI machines are worked around here, once:
# on a host with hybrid cgroups (v1 plus `unified`) crun refuses to start even without using cgroups, so it runs in a
# private mount namespace from which `unified` is unmounted; and it is told not to make a cgroup at all. The capabilities
# are Docker's default ones, where umoci grants three.
run_layout() {
    local layout=$1 tag=$2 bundle
    shift 2
    bundle=$(mktemp -d)
    umoci --log=error unpack --image "$layout:$tag" "$bundle/b"
    local capabilities='CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE
        SYS_CHROOT KILL AUDIT_WRITE'
    local filter='.process.terminal = false | .linux.namespaces |= map(select(.type != "network"))'
    filter+=' | ($capabilities | [splits("\\s+")] | map("CAP_" + .)) as $all'
    filter+=' | .process.capabilities |= with_entries(.value = if .key == "ambient" then [] else $all end)'
    (($# == 0)) || filter+=' | .process.args = $ARGS.positional'
    jq --arg capabilities "$capabilities" "$filter" "$bundle/b/config.json" --args "$@" >"$bundle/config.json"
    mv "$bundle/config.json" "$bundle/b/config.json"
    local status=0
    unshare --mount sh -c '
        umount /sys/fs/cgroup/unified 2>/dev/null
        exec crun --cgroup-manager=disabled --root "$1/state" run --bundle "$1/b" "layerwright-$$"' sh "$bundle" || status=$?
    rm -rf "$bundle"
    return $status
}

# busybox_rootfs TAR: a static busybox, its applets, and users root, daemon and nobody.
busybox_rootfs() {
    local root
    root=$(mktemp -d)
    mkdir -p "$root"/{bin,dev,etc,home,proc,root,sbin,sys,tmp,usr/bin,usr/sbin,var/tmp}
    chmod 755 "$root" && chmod 700 "$root/root" && chmod 1777 "$root/tmp" "$root/var/tmp"
    cp "$(command -v busybox)" "$root/bin/busybox"
    for applet in $("$root/bin/busybox" --list); do
        [[ $applet == busybox ]] || ln -s busybox "$root/bin/$applet"
    done
    printf '%s\n' root:x:0:0:root:/root:/bin/sh daemon:x:1:1:daemon:/usr/sbin:/bin/false \
        www-data:x:33:33:www-data:/var/www:/bin/false nobody:x:65534:65534:nobody:/:/bin/false >"$root/etc/passwd"
    printf '%s\n' root:x:0: daemon:x:1: www-data:x:33: nogroup:x:65534: >"$root/etc/group"
    rootfs_tar "$root" "$1" --owner=0 --group=0
}

# rootfs_tar ROOT TAR [OPTION...]: packs a tree in a fixed order, without device nodes (RUN has a /dev of its own), and deletes it.
rootfs_tar() {
    local root=$1 tar=$2
    shift 2
    tar --create --sort=name --numeric-owner --one-file-system --exclude='./dev/*' "$@" \
        --directory "$root" --file "$tar.partial" .
    mv "$tar.partial" "$tar"
    rm -rf "$root"
}
