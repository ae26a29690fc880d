"""Root, an ordinary user with subordinate ids, and one without."""

import unittest

from support import Case, Layout, USERS

PLAIN = "FROM busybox\nRUN id -u > /id && echo run > /run-was-here\nCOPY --chown=33:34 file /file\nWORKDIR /w\n"


class Users(Case):
    def test_all_users_agree_on_a_plain_build(self):
        context = self.context(Dockerfile=PLAIN, file="x\n")
        digests = {}
        for user in USERS:
            layout = Layout(self.build(context, user=user, name=user))
            layout.validate()
            self.assertEqual(layout.read("id"), b"0\n")
            digests[user] = layout.digest
        self.assertEqual(len(set(digests.values())), 1, digests)

    def test_other_owners_work_with_subordinate_ids(self):
        dockerfile = "FROM busybox\nRUN touch /a && chown 33:34 /a\nUSER www-data\nRUN id -u > /tmp/id\n"
        context = self.context(Dockerfile=dockerfile)
        root = Layout(self.build(context, name="root"))
        self.assertEqual(root.read("tmp/id"), b"33\n")
        self.assertEqual(Layout(self.build(context, user="lw-sub", name="sub")).digest, root.digest)

    def test_other_owners_are_refused_by_name_with_one_id(self):
        for dockerfile in ("FROM busybox\nUSER 33\nRUN true\n", "FROM busybox\nRUN touch /a && chown 33 /a\n"):
            context = self.context(f"c{len(dockerfile)}", Dockerfile=dockerfile)
            done = self.run_layerwright("build", "--progress", "plain", context, user="lw-one", code=None)
            self.assertNotEqual(done.returncode, 0)
            self.assertRegex(done.stderr, "subuid|subordinate")

    def test_doctor_says_what_each_user_may_do(self):
        self.assertIn("root", self.run_layerwright("doctor").stdout)
        self.assertRegex(self.run_layerwright("doctor", user="lw-sub").stdout, "subordinate ids")
        one = self.run_layerwright("doctor", user="lw-one").stdout
        self.assertRegex(one, "usermod --add-subuids|/etc/subuid")

    def test_a_store_belongs_to_one_user(self):
        context = self.context(Dockerfile="FROM busybox\nRUN true\n")
        store = self.store("root")
        self.build(context)
        store.chmod(0o777)
        done = self.run_layerwright("build", context, user="lw-sub", root=store, code=4)
        self.assertIn(str(store), done.stderr)


if __name__ == "__main__":
    unittest.main()
