"""`layerwright cache ls`, `show` and `prune`: caches in registries, whose garbage the registry collects, and in directories."""

import json
import os
import pathlib
import subprocess
import time
import unittest

import support

# Two layers of 300 kB that nobody else has, one of which the next step keeps alive, and a stage that is copied from.
DOCKERFILE = """\
FROM busybox AS tools
RUN dd if=/dev/urandom of=/tool bs=1k count=300 2>/dev/null; echo {name}
FROM busybox
RUN dd if=/dev/urandom of=/big bs=1k count=300 2>/dev/null; echo {name} > /name
COPY --from=tools /tool /tool
RUN true
"""
STEPS = 4
HOURS = 7200


class Care(support.Case):
    def cache(self, command, *arguments, **options):
        return self.run_layerwright("cache", command, *arguments, **options).stdout

    def listed(self, remote, *arguments):
        return json.loads(self.cache("ls", "--remote", remote, "--json", *arguments))

    def dockerfile(self, name):
        return self.context(f"context-{name}", Dockerfile=DOCKERFILE.format(name=name))

    def fill(self, context, cache, *arguments, store="store", **options):
        """Builds in a store of this name and fills a cache."""
        root = self.scratch / store
        return self.run_layerwright("build", "--progress", "plain", "--cache-to", cache, *arguments, context, root=root, **options)

    def fresh(self, context, cache, *arguments, store):
        """Builds in a store that has nothing; gives how many records of the cache were used, and the digest."""
        done = self.run_layerwright("build", "--progress", "plain", "--metadata-file", self.scratch / f"{store}.json",
                                    "--cache-from", cache, *arguments, context, root=self.scratch / store)
        return done.stderr.count(" CACHED from "), json.loads((self.scratch / f"{store}.json").read_text())["containerimage.digest"]

    def test_a_registry_frees_what_was_pruned_and_keeps_the_rest_whole(self):
        with support.Registry(self.scratch / "registry") as registry:
            remote = f"{registry.host}/app/cache"
            kept, other = self.dockerfile("kept"), self.dockerfile("other")
            digests = {}
            for name, context in (("kept", kept), ("other", other)):
                cache = f"type=registry,ref={remote}:{name}"
                self.fill(context, cache, "-t", f"{registry.host}/app:{name}", "--push", "--metadata-file", self.scratch / "meta",
                          store=name)
                digests[name] = json.loads((self.scratch / "meta").read_text())["containerimage.digest"]
            listed = self.listed(remote)
            self.assertEqual({name for bundle in listed["bundles"] for name in bundle["names"]}, {"kept", "other"})
            self.assertEqual(len(listed["records"]), 2 * STEPS)
            self.assertLess(listed["bytes"], 2_000_000, "shared layers are counted once")
            keep = ("--keep-image", f"{registry.host}/app:kept")
            planned = json.loads(self.cache("prune", "--remote", remote, *keep, "--dry-run", "--json"))
            self.assertEqual(self.listed(remote), listed, "nothing has gone")
            removed = json.loads(self.cache("prune", "--remote", remote, *keep, "--json"))
            self.assertEqual(removed["removed"], planned["removed"])
            self.assertEqual(removed["bytes"] + removed["left"], listed["bytes"])
            # All that the other image has, and the stage of this one, which is no part of it.
            self.assertEqual(len(removed["removed"]["records"]), STEPS + 1)
            self.assertEqual(len(self.listed(remote)["records"]), STEPS - 1)
            before = self.size(registry)
            registry.collect_garbage()
            # Of the other image nothing has gone, so what is freed is what only its stage has, and this one's.
            self.assertGreater(before - self.size(registry), 300_000)
            for name in ("kept", "other"):
                subprocess.run(["skopeo", "copy", "--src-tls-verify=false", f"docker://{registry.host}/app:{name}",
                                f"oci:{self.scratch}/copied-{name}:x"], check=True, timeout=support.WATCHDOG,
                               stdout=subprocess.DEVNULL)
            self.assertEqual(self.fresh(kept, f"type=registry,ref={remote}:kept", store="again")[1], digests["kept"])
            steps, _ = self.fresh(kept, f"type=registry,ref={remote}:kept", "-t", f"{registry.host}/app:again", "--push", store="third")
            self.assertEqual(steps, STEPS - 1, "all but the stage, which nobody needs")

            everything = self.cache("prune", "--remote", remote, "--all")
            self.assertIn("Left:\t0 records, 0 bundles: 0B", everything)
            self.assertIn("garbage-collect", everything)
            registry.collect_garbage()
            self.assertEqual(self.listed(remote)["records"], [])
            subprocess.run(["skopeo", "inspect", "--tls-verify=false", f"docker://{registry.host}/app:kept"], check=True,
                           timeout=support.WATCHDOG, stdout=subprocess.DEVNULL)

    def size(self, registry):
        return sum(path.stat().st_size for path in (registry.directory / "data").rglob("data") if path.is_file())

    def test_a_registry_that_deletes_nothing_is_told_with_what_to_set(self):
        with support.Registry(self.scratch / "registry", keeps=True) as registry:
            remote = f"{registry.host}/cache"
            self.fill(self.dockerfile("a"), f"type=registry,ref={remote}")
            refused = self.run_layerwright("cache", "prune", "--remote", remote, "--all", code=3).stderr
            self.assertIn(f"cannot delete from {remote}: it deletes nothing", refused)
            self.assertIn("REGISTRY_STORAGE_DELETE_ENABLED=true", refused)
            self.assertEqual(len(self.listed(remote)["records"]), STEPS)

    def test_what_is_shown_of_a_step(self):
        remote = self.scratch / "cache"
        self.fill(self.dockerfile("a"), f"type=local,dest={remote},tag=main")
        listed = self.listed(remote)
        self.assertEqual([bundle["names"] for bundle in listed["bundles"]], [["main"]])
        record = next(record for record in listed["records"] if "/big" in record["instruction"])
        self.assertGreater(record["size"], 300_000)
        for key in ("definition", "content"):
            digits = record[key].removeprefix("blake3:")
            for what in (digits[:12], digits, record[key], f"lw1-{key[0]}-{digits}"):
                shown = self.cache("show", what, "--remote", remote)
                self.assertIn(record["definition"], shown)
                self.assertIn(f"lw1-d-{record['definition'][7:]}", shown)
                self.assertIn(f"lw1-c-{record['content'][7:]}", shown)
                self.assertIn("~instruction", shown)
        told = json.loads(self.cache("show", digits[:12], "--remote", f"type=local,src={remote}", "--json"))
        self.assertEqual(told["pre_image"]["~instruction"], record["instruction"])
        self.assertEqual([list(layer) for layer in told["layers"]], [["base"], ["blobs", "diff_id", "tree", "tree_blob"]])
        bundle = self.cache("show", "main", "--remote", remote)
        self.assertEqual(bundle.count("RUN dd"), 2)
        table = self.cache("ls", "--remote", remote)
        self.assertRegex(table, rf"(?m)^{record['definition'][7:19]} +{record['content'][7:19]} .* no +3\d\d\.\d\dkB +RUN dd ")
        self.assertIn(f"Total:\t{STEPS} records, 1 bundle: ", table)
        for what in ("0000000000", "nothing", "abc"):
            self.run_layerwright("cache", "show", what, "--remote", remote, code=2)
        self.run_layerwright("cache", "prune", "--remote", remote, code=2)
        self.run_layerwright("cache", "ls", "--remote", "type=s3,bucket=x", code=2)
        short = self.run_layerwright("cache", "show", "4", "--remote", remote, code=2).stderr
        self.assertIn("nothing called 4, and the beginning of a key has at least 4 digits", short)
        for what in (f"lw1-{key[0]}-{digits[:6]}", digits[:4]):
            self.assertIn(record["definition"], self.cache("show", what, "--remote", remote))
        other = self.run_layerwright("cache", "show", f"lw1-b-{digits[:6]}", "--remote", remote, code=2).stderr
        self.assertIn(f"nothing whose name begins with lw1-b-{digits[:6]}", other)
        bundle = f"type=local,src={remote},tag=main"
        self.assertIn(f"Total:\t{STEPS} records, 1 bundle: ", self.cache("ls", "--remote", bundle))
        self.assertEqual(self.listed(bundle)["distinct_records"], STEPS)
        none = self.run_layerwright("cache", "ls", "--remote", f"type=local,src={remote},tag=nope", code=2).stderr
        self.assertIn(f"{remote} has no bundle called nope", none)

    def test_what_is_mistyped_is_no_empty_cache(self):
        nowhere, empty = self.scratch / "nowhere-at-all", self.scratch / "empty"
        empty.mkdir()
        for command in (("ls",), ("show", "main"), ("prune", "--all")):
            refused = self.run_layerwright("cache", *command, "--remote", nowhere, code=4).stderr
            self.assertIn(f"cannot read the cache {nowhere}: No such file or directory", refused)
            refused = self.run_layerwright("cache", *command, "--remote", "nowhere", code=2).stderr
            self.assertIn("write ./nowhere for a directory, docker.io/library/nowhere for that repository", refused)
        self.assertIn("0 records, 0 bundles", self.cache("ls", "--remote", empty))
        self.assertIn("Removed:\t0 records, 0 bundles", self.cache("prune", "--all", "--remote", empty))
        with support.Registry(self.scratch / "registry") as registry:
            typo = f"{registry.host}/team/typo"
            for command in (("ls",), ("show", "main"), ("prune", "--all")):
                refused = self.run_layerwright("cache", *command, "--remote", typo, code=3).stderr
                self.assertIn(f"{typo} does not exist: NAME_UNKNOWN", refused)

    def test_a_directory_loses_what_is_pruned_and_nothing_young(self):
        remote = self.scratch / "cache"
        context = self.dockerfile("a")
        self.fill(context, f"type=local,dest={remote},tag=main")
        self.assertIn("Removed:\t0 records, 0 bundles", self.cache("prune", "--remote", remote, "--keep-duration", "1h"))
        self.assertIn("Removed:\t0 records, 0 bundles", self.cache("prune", "--remote", remote, "--keep-storage", "1GB"))
        for user in support.USERS[1:]:
            # Whoever may only read sees all of it, and removes nothing.
            self.assertEqual(self.cache("ls", "--remote", remote, "--json", user=user), self.cache("ls", "--remote", remote, "--json"))
            refused = self.run_layerwright("cache", "prune", "--remote", remote, "--all", user=user, code=4).stderr
            self.assertIn(f"cannot tidy up {remote}", refused)
        less = self.listed(remote)["bytes"] - 1
        self.assertIn("Removed:\t0 records, 1 bundle", self.cache("prune", "--remote", remote, "--keep-storage", str(less)))
        pruned = self.cache("prune", "--remote", remote, "--all")
        self.assertIn(f"Removed:\t{STEPS} records, 0 bundles", pruned)
        self.assertRegex(pruned, r"Young:\t\d+\.\d\dMB|Young:\t\d+\.\d\dkB")
        blobs = list((remote / "blobs/sha256").iterdir())
        self.assertTrue(blobs)
        self.age(remote)
        self.cache("prune", "--remote", remote, "--all")
        self.assertEqual(list((remote / "blobs/sha256").iterdir()), [])
        # And is filled again from a store that has all.
        self.fill(context, f"type=local,dest={remote},tag=main")
        self.assertEqual(len(self.listed(remote)["records"]), STEPS)

    def age(self, remote):
        then = time.time() - HOURS
        for blob in (pathlib.Path(remote) / "blobs/sha256").iterdir():
            os.utime(blob, (then, then))

    def test_builds_lose_nothing_to_a_prune_beside_them(self):
        remote = self.scratch / "cache"
        text = "FROM busybox\n" + "".join(f"RUN echo {n} > /f{n}\n" for n in range(6))
        context = self.context("steps", Dockerfile=text)
        cache = f"type=local,dest={remote},tag=main"
        self.fill(context, cache)
        digest = self.fresh(context, f"type=local,src={remote},tag=main", store="first")[1]
        for turn in range(2):
            self.age(remote)
            command = self.command("build", "--progress", "plain", "--cache-to", cache, context, root=self.scratch / f"beside-{turn}")
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
                while process.poll() is None:
                    self.cache("prune", "--remote", remote, "--all")
                self.assertEqual(process.returncode, 0, process.stdout.read())
            # Whatever is named is whole: a build that believes it comes to the same end.
            for record in self.listed(remote)["records"]:
                self.whole(remote, record["names"][0])
            _, again = self.fresh(context, f"type=local,src={remote},tag=main", store=f"after-{turn}")
            self.assertEqual(again, digest)

    def whole(self, remote, name):
        manifest = json.loads((remote / "names" / f"{name}.json").read_text())
        for blob in [manifest["config"], *manifest["layers"]]:
            self.assertTrue((remote / "blobs" / blob["digest"].replace(":", "/")).exists(), f"{name}: {blob}")

    def test_with_a_trust_key_only_what_it_has_signed_is_there(self):
        remote = self.scratch / "cache"
        keys = {}
        for name in ("ours", "theirs"):
            private, public = self.scratch / f"{name}.key", self.scratch / f"{name}.pub"
            subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, timeout=support.WATCHDOG)
            subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, timeout=support.WATCHDOG)
            keys[name] = private, public
        self.fill(self.dockerfile("ours"), f"type=local,dest={remote},tag=ours", "--cache-sign-key", keys["ours"][0])
        self.fill(self.dockerfile("nobodys"), f"type=local,dest={remote},tag=nobodys")
        signed = {record["signed"] for record in self.listed(remote)["records"]}
        self.assertEqual(signed, {"yes", "no"})
        for name, trusted in (("ours", STEPS), ("theirs", 0)):
            listed = self.listed(remote, "--cache-trust-key", keys[name][1])
            self.assertEqual([record["signed"] for record in listed["records"]], ["trusted"] * trusted)
            self.assertTrue(all("not signed" in entry["why"] for entry in listed["unusable"]))
        pruned = self.cache("prune", "--remote", remote, "--cache-trust-key", keys["ours"][1], "--keep-storage", "off")
        self.assertIn("unusable", pruned)
        self.assertEqual({record["signed"] for record in self.listed(remote)["records"]}, {"yes"})
        wrong = self.run_layerwright("cache", "ls", "--remote", remote, "--cache-trust-key", keys["ours"][0], code=2)
        self.assertIn("openssl pkey", wrong.stderr)


if __name__ == "__main__":
    unittest.main()
