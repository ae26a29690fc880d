"""Flipped bits and lost files of the store: each is found on use or by fsck, and after a repair the digest is the same."""

import random
import shutil
import unittest

from ground import NIGHTLY, SEED, Faults, files

FLIPS = 200 if NIGHTLY else 14
DELETIONS = 100 if NIGHTLY else 8


def flip(path, generator):
    data = bytearray(path.read_bytes())
    bit = generator.randrange(len(data) * 8)
    data[bit // 8] ^= 1 << bit % 8
    # In place: the inode, its mode, owner and times stay as they are on a disk that rots.
    with path.open("r+b") as file:
        file.write(data)


class Damage(Faults):
    def check(self, pristine, context, digest, damaged):
        """After `damaged` was done to `store`: build, repair, build."""
        store = self.copy_of(pristine, "store")
        what, is_harmless = damaged(store)
        place = store / what.rsplit(" ", 1)[0]
        left = place.read_bytes() if place.exists() else None
        with self.subTest(seed=SEED, damaged=what):
            found = self.image(context, store, code=None)
            was_told = "made again" in self.last.stderr or "not used" in self.last.stderr \
                or "warning" in self.last.stderr.lower()
            if found is None:
                self.assertIn("fsck", self.last.stderr, "the error says what to do")
            else:
                self.assertEqual(found, digest, "never a wrong image")
            findings = self.fsck(store, "--repair", code=None)
            self.assertIn(self.last_fsck.returncode, (0, 1), self.last_fsck.stderr)
            # What is only kept to save time is replaced without a word.
            is_mended = (place.read_bytes() if place.exists() else None) != left
            self.assertTrue(is_harmless or findings or was_told or found is None or is_mended,
                            "the damage was found")
            self.assertEqual(self.image(context, store), digest)
            self.clean(store)
        shutil.rmtree(store)

    def pristine(self):
        context, store = self.everything(), self.store()
        digest = self.image(context, store)
        # Once more, so that nothing is in the store only because it was the first time.
        self.assertEqual(self.image(context, store), digest)
        self.clean(store)
        return context, store, digest

    def test_flipped_bits(self):
        context, pristine, digest = self.pristine()
        generator = random.Random(SEED)

        def damaged(store):
            path = generator.choice([path for path in files(store) if path.stat().st_size])
            flip(path, generator)
            return f"{path.relative_to(store)} flipped", False

        for _ in range(FLIPS):
            self.check(pristine, context, digest, damaged)

    def test_lost_files(self):
        context, pristine, digest = self.pristine()
        generator = random.Random(SEED)

        def damaged(store):
            path = generator.choice(files(store))
            path.unlink()
            relative = str(path.relative_to(store))
            # What is kept for later and not there is a miss: nothing names these but the past.
            is_harmless = relative.startswith(("history", "inventories", "contexts", "records", "sealed", "seeds", "mounts", "sizes.json"))
            return f"{relative} lost", is_harmless or relative.startswith("blobs")

        for _ in range(DELETIONS):
            self.check(pristine, context, digest, damaged)


if __name__ == "__main__":
    unittest.main()
