//! The longer help of commands.

/// What follows the flags in `layerwright build --help`.
pub const BUILD: &str = "\
Outputs (-o, repeatable; without one the result stays in the store):
  type=registry[,name=REF]         push to REF, or to every -t
  type=image,push=true[,name=REF]  the same; push-by-digest=true puts no tag
  type=oci,dest=FILE               OCI layout as a tar archive
  type=oci,dest=DIR,tar=false      OCI layout as a directory
  type=docker,dest=FILE            an archive for docker load and podman load
  type=docker                      that archive, loaded into docker or podman
  type=tar,dest=FILE               the root file system as a tar archive
  type=local,dest=DIR              the root file system as a directory
  type=cacheonly                   nothing: the result stays in the store
  DIR                              short for type=local,dest=DIR
  -                                short for type=tar,dest=-
  A FILE called - is standard output. Images also take
  compression=gzip|zstd|uncompressed and
  compression-level=N (gzip 0 to 9, default 4; zstd 0 to 22, default 3),
  which hold for base layers in another format with force-compression=true,
  oci-mediatypes=BOOL and annotation[-TYPE][[PLATFORM]].KEY=VALUE.
  A value with a comma is quoted: 'type=oci,dest=x,\"name=a,b\"'.

Remote caches (--cache-from and --cache-to, repeatable; see docs/cache.md):
  REF[,REF...]                     short for type=registry,ref=REF
  type=registry,ref=REPO[:TAG]     in a repository; TAG names the bundle of all
                                   a build has used
  type=local,src=DIR               a directory, with --cache-from
  type=local,dest=DIR              the same with --cache-to; both take tag=TAG
  type=inline                      the image itself; read as type=registry
  --cache-to takes mode=max (default: every step) or min (the image's own),
  ignore-error=BOOL (default true), compression=, compression-level= and
  force-compression= as outputs do. Both take registry.insecure=BOOL.

Contexts:
  DIR                              a directory
  -                                standard input: a tar archive, compressed or
                                   not, or a Dockerfile with no files beside it
  https://HOST/x.git[#REF[:DIR]]   a git repository; also ssh://, git://,
                                   USER@HOST:PATH; ?branch= ?tag= ?subdir=
                                   ?checksum= and others
  https://HOST/x.tar.gz            a tar archive; any other file is the
                                   Dockerfile
  --git REV builds what a commit holds: CONTEXT is a directory in its
  repository, or a bare one, and REV:DIR names another directory of the
  commit. -f is a path in the commit. A work tree that differs from the
  commit is refused, or laid over it with --dirty (see docs/git.md).
  With it, -t takes what the commit is called: {git.sha}, {git.short},
  {git.branch}, {git.tag}, {git.tree} (the context's).
  -f PATH lies in the working directory where the context is a directory, else
  in the context; an absolute path, a URL and - are what they are.

Named contexts (--build-context NAME[::OS/ARCH]=SOURCE) stand for an image or
a stage:
  DIR, a git repository, a URL     files, as above; a URL is a file \"context\"
  docker-image://REF               an image in a registry
  oci-layout://DIR[:TAG][@DIGEST]  an image in an OCI layout
  scratch                          nothing at all

Limits (see docs/limits.md): NAME of --ulimit is one of as, core, cpu, data,
fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime,
sigpending and stack. --memory, --cpus, --cpuset-..., --pids-limit and their
like need version 2 of control groups, and one that is ours to divide; where
there is none they are refused, never ignored.

Sandboxes (--sandbox), which layerwright doctor explains:
  auto                             the first that works: root, a user namespace
                                   with subordinate ids, one with one id
  strict                           the first two, and overlays of the kernel
  userns                           the second only, for root, too; root then has
                                   a store of its own beside the other
  chroot                           none, for root of a container that forbids
                                   them; see docs/sandbox.md for what it lacks
--sandbox-allow lets a line of it go, by name; see docs/sandbox.md:
  userns                           commands may make user namespaces, and in
                                   them mounts: for builders inside of RUN
  no-seccomp, no-keyring, no-cgroupns, no-oom-score
                                   where the machine has none
  no-landlock                      root of a container with a masked /proc,
                                   before Linux 6.12
  fuse-overlayfs                   a version of it that brings back what a
                                   command has removed, as 1.10 to 1.14 do
  hard-links                       with copies, steps may change files of
                                   several names, which an overlay parts
Where the kernel mounts no overlay in the store, fuse-overlayfs merges layers
if it is installed and a trial shows that it does so as the kernel would; else
each step gets a copy of the whole file system: slower, and the same image. A
step that writes to, links or moves a file of an earlier layer that has several
names, which an overlay parts, is refused there.

Annotations go into the manifest; TYPE:K=V says where else: manifest,
manifest-descriptor, each with an optional [PLATFORM]; index and, in an OCI
layout, index-descriptor where several platforms are built.

Environment:
  LAYERWRIGHT_ROOT          the store, where --root is not given
  LAYERWRIGHT_KEEP_STORAGE  how large the store may grow: 10GB, 512MiB, 20% (of
                            the disk), off; see layerwright gc --help
  LAYERWRIGHT_LOAD          docker or podman: who takes the image of --load;
                            else docker if its daemon answers, else podman
  SOURCE_DATE_EPOCH         sets the build argument of that name, and with it
                            the times in the image
  SSH_AUTH_SOCK             the agent of --ssh default
  BUILDKIT_PROGRESS         sets --progress
  DOCKER_DEFAULT_PLATFORM   sets --platform
  DOCKER_CONFIG             directory of Docker's config.json, for registry
                            credentials
  REGISTRY_AUTH_FILE        Podman's file of registry credentials
  DOCKER_AUTH_CONFIG        the text of such a file; goes before all files
  LAYERWRIGHT_...           the flags under Registries: INSECURE_REGISTRY,
                            SKIP_TLS_VERIFY_REGISTRY, REGISTRY_MIRROR,
                            REGISTRY_CERTIFICATE, REGISTRY_CLIENT_CERT and
                            TRUSTED_REALM, values separated by blanks
  CONTAINERS_REGISTRIES_CONF  the registries.conf to read
  SSL_CERT_FILE, SSL_CERT_DIR  authorities in place of the system's
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY  in capitals or not
  NO_COLOR                  no colours

The other flags of docker buildx build are refused by name, unless they ask
for what is done in any case: --provenance=false and --sbom=false (no
attestations are made), --rm.

Exit codes:
  0 done, 1 the build failed, 2 usage or Dockerfile error, 3 registry or
  network, 4 store, disk or sandbox, 129, 130 and 143 stopped by SIGHUP, SIGINT
  and SIGTERM, 255 a bug in layerwright";

/// What follows the flags in `layerwright explain --help`.
pub const EXPLAIN: &str = "\
A step that ran is compared with the one of an earlier build that is most like
it, by the history and the cache of the store. What differs is told, one thing
a line:
  src/main.c  content           a file that is copied; also added, removed,
                                mode, link
  ARG NAME  old → new           or ENV, or another setting
  base  - old                   the image that the stage is built on
        + new
  instruction  - old            the text of the instruction
               + new
  because of [2/4] COPY . /src  nothing but what an earlier step has made
and where nothing differs: forced, too old, failed or stopped before, gone from
the store, or new.";

/// What follows the flags in `layerwright fsck --help`.
pub const FSCK: &str = "\
Blobs, trees and records are verified by their digests, the files of snapshots
and checkouts by the trees of what was written. What commands have put into
cache mounts is theirs. Builds may run meanwhile; what one of them uses is not
removed.

Exit codes:
  0 no damage, 1 damage was found (with --repair: and all of it removed),
  2 there is no store, 4 damage that could not be removed, or a store that
  cannot be read";
