"""How layers are packed: every compression and level, base layers packed anew, and who can read that."""

import hashlib
import json
import shutil
import subprocess
import unittest

import support

DOCKERFILE = ("FROM busybox\nRUN i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done >/lines\n"
              "RUN head -c 3000000 /dev/urandom >/noise\nCOPY small /\n")
GZIP, ZSTD, TAR = (f"application/vnd.oci.image.layer.v1.tar{suffix}" for suffix in ("+gzip", "+zstd", ""))
UNPACK = {GZIP: ["gzip", "-dc"], ZSTD: ["zstd", "-dc"], TAR: ["cat"]}


class Compression(support.Case):
    def setUp(self):
        super().setUp()
        self.project = self.context(Dockerfile=DOCKERFILE, small="small\n")

    def packed(self, keys, user="root"):
        """Builds to a layout; its manifest's layers have the diff IDs of its config, as the usual tools unpack them."""
        out = self.scratch / f"out-{len(list(self.scratch.iterdir()))}"
        out.mkdir()
        shutil.chown(out, user, user)
        keys = f",{keys}" if keys else ""
        self.last = self.run_layerwright("build", "--progress", "plain", "-o", f"type=oci,tar=false,dest={out / 'layout'}{keys}",
                                         self.project, user=user)
        layout = support.Layout(out / "layout")
        layout.validate()
        diff_ids = []
        for layer in layout.manifest["layers"]:
            with open(layout.blob(layer), "rb") as blob:
                tar = subprocess.run(UNPACK[layer["mediaType"]], stdin=blob, stdout=subprocess.PIPE, check=True).stdout
            diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
        self.assertEqual(diff_ids, layout.config["rootfs"]["diff_ids"])
        return layout

    def types(self, layout):
        return [layer["mediaType"] for layer in layout.manifest["layers"]]

    def sizes(self, layout):
        return [layer["size"] for layer in layout.manifest["layers"]]

    def test_all_compressions_of_one_build_have_the_same_tars(self):
        for user in support.USERS:
            default, zstd, plain = (self.packed(keys, user) for keys in ("", "compression=zstd", "compression=uncompressed"))
            base, *built = self.types(default)
            self.assertEqual(built, [GZIP] * 3)
            self.assertEqual(self.types(zstd), [base] + [ZSTD] * 3)
            self.assertEqual(self.types(plain), [base] + [TAR] * 3)
            # Nothing ran again, so noise is the same noise; and what compression can do it does.
            self.assertEqual(default.config["rootfs"], zstd.config["rootfs"])
            self.assertEqual(default.config["rootfs"], plain.config["rootfs"])
            self.assertLess(self.sizes(zstd)[1] * 3, self.sizes(plain)[1])
            self.assertLess(self.sizes(zstd)[2], self.sizes(plain)[2] + 4096)

    def test_levels_are_obeyed_and_decide_the_digest(self):
        for kind, low, high in (("gzip", 1, 9), ("zstd", 0, 19)):
            low, high = (self.packed(f"compression={kind},compression-level={level}") for level in (low, high))
            self.assertLess(self.sizes(high)[1], self.sizes(low)[1])
            self.assertNotEqual(low.digest, high.digest)
            self.assertEqual(low.config["rootfs"], high.config["rootfs"])

    def test_force_compression_packs_the_base_anew_and_once(self):
        for user in support.USERS:
            kept, forced = (self.packed(f"compression=zstd{force}", user) for force in ("", ",force-compression=true"))
            self.assertEqual(set(self.types(forced)), {ZSTD})
            self.assertNotEqual(kept.manifest["layers"][0], forced.manifest["layers"][0])
            self.assertEqual(kept.manifest["layers"][1:], forced.manifest["layers"][1:])
            self.assertEqual(kept.config, forced.config)
            plain = self.packed("compression=uncompressed,force-compression=true", user)
            self.assertEqual(set(self.types(plain)), {TAR})
            # Without the base's blob: what is in the store is enough.
            again = self.packed("force-compression=1,compression=zstd", user)
            self.assertEqual(again.digest, forced.digest)

    @unittest.skipUnless(shutil.which("skopeo"), "SKIPPED: skopeo is not installed")
    def test_consumers_and_a_registry_take_zstd(self):
        layout = self.packed("compression=zstd,force-compression=true")
        with support.Registry(self.scratch / "registry") as registry:
            name = f"{registry.host}/zstd:1"
            output = f"type=registry,name={name},compression=zstd,force-compression=true"
            self.run_layerwright("build", "-o", output, self.project)
            there = json.loads(subprocess.run(["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{name}"],
                                              check=True, capture_output=True).stdout)
            self.assertEqual(there, layout.manifest)
            # Unpacks every layer, and fails where one has not its diff ID.
            subprocess.run(["skopeo", "copy", "--src-tls-verify=false", "--dest-decompress", f"docker://{name}",
                            f"dir:{self.scratch / 'unpacked'}"], check=True, capture_output=True)
        unpacked = json.loads((self.scratch / "unpacked/manifest.json").read_text())
        self.assertEqual([layer["digest"] for layer in unpacked["layers"]], layout.config["rootfs"]["diff_ids"])


if __name__ == "__main__":
    unittest.main()
