"""Keys of whoever builds: a step has a session keyring of its own, so it finds none of them."""

import shutil
import subprocess
import unittest

from support import Case, USERS, WATCHDOG

# `hold COMMAND...` puts a key into a new session keyring and becomes the command; `find` says what it finds there.
KEYS = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { JOIN_SESSION_KEYRING = 1, SEARCH = 10, READ = 11, SESSION_KEYRING = -3 };

int main(int count, char **words) {
    if (count > 2 && strcmp(words[1], "hold") == 0) {
        if (syscall(SYS_keyctl, JOIN_SESSION_KEYRING, NULL) < 0 ||
            syscall(SYS_add_key, "user", "lw-session", "canary", 6, SESSION_KEYRING) < 0) {
            perror("hold");
            return errno == ENOSYS ? 77 : 1;
        }
        execvp(words[2], words + 2);
        return 127;
    }
    char found[64] = "";
    long key = syscall(SYS_keyctl, SEARCH, SESSION_KEYRING, "user", "lw-session", 0);
    if (key < 0 || syscall(SYS_keyctl, READ, key, found, sizeof found - 1) < 0)
        snprintf(found, sizeof found, "%s", strerror(errno));
    printf("found: %s.\n", found);
    return 0;
}
"""


class Keys(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.keys = cls.program("keys", KEYS)
        held = subprocess.run([cls.keys, "hold", "true"], timeout=WATCHDOG, check=False)
        if held.returncode == 77:
            raise unittest.SkipTest("SKIPPED: session keyrings: this kernel has no keys")

    def held(self, *command, user):
        """What a command says that is started by a user who holds a key."""
        done = subprocess.run(["runuser", "-u", user, "--", self.keys, "hold", *map(str, command)], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=WATCHDOG, check=False, cwd="/")
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_the_builders_session_is_not_the_steps(self):
        # The filter denies key calls to other steps; an insecure one has no filter.
        context = self.context(Dockerfile="FROM busybox\nCOPY keys /bin/keys\nRUN keys\nRUN --security=insecure keys\n")
        shutil.copy2(self.keys, context)
        for user in USERS:
            with self.subTest(user=user):
                # Whoever is started without a sandbox finds it, also in a user namespace.
                self.assertEqual(self.held(self.keys, user=user), "found: canary.\n")
                self.assertEqual(self.held("unshare", "--user", "--map-root-user", self.keys, user=user), "found: canary.\n")
                said = self.held(*self.command("build", "--progress", "plain", "--allow", "security.insecure", context,
                                               root=self.store(user)), user=user)
                found = [line.split("found: ")[1] for line in said.splitlines() if "found: " in line]
                self.assertEqual(found, ["Operation not permitted.", "Required key not available."], said)


if __name__ == "__main__":
    unittest.main()
