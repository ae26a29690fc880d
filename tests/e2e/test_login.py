"""Logging in and out: against a real registry, at a terminal, with a credential helper, as every kind of user."""

import base64
import json
import os
import pty
import select
import subprocess
import termios
import time

from support import USERS, WATCHDOG, Case, Registry

HELPER = """#!/bin/sh
# Keeps logins in files, as docker-credential-pass keeps them encrypted.
store="$(dirname "$0")/kept"
mkdir -p "$store"
case $1 in
store) read -r entry; echo "$entry" > "$store/$(echo "$entry" | sed 's/.*ServerURL":"\\([^"]*\\).*/\\1/')" ;;
get) read -r server; cat "$store/$server" 2>/dev/null || { echo credentials not found in native keychain; exit 1; } ;;
erase) read -r server; rm "$store/$server" ;;
list) for kept in "$store"/*; do [ -e "$kept" ] && names="$names,\\"${kept##*/}\\":\\"u\\""; done; echo "{${names#,}}" ;;
esac
"""


class Login(Case):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        htpasswd = cls.shared / "htpasswd"
        htpasswd.write_bytes(subprocess.run(["htpasswd", "-Bbn", "me", "s3cret-pw"], stdout=subprocess.PIPE, check=True).stdout)
        cls.registry = Registry(cls.shared / "registry", htpasswd=htpasswd).__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.registry.__exit__()
        super().tearDownClass()

    def setUp(self):
        super().setUp()
        self.host = self.registry.host

    def login(self, *arguments, password=None, env=None, code=0, user="root", **options):
        """Runs login; what goes in is the password, and no password comes out."""
        env, command = env or self.environment(), self.command(*arguments, user=user)
        if user != "root":
            # runuser gives users their own.
            command[4:4] = ["env", f"HOME={env['HOME']}"]
        done = subprocess.run(
            command, input=password, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=env, timeout=WATCHDOG, cwd=self.scratch, **options)
        self.assertEqual(done.returncode, code, f"{arguments}: {done.stdout}{done.stderr}")
        for stream in (done.stdout, done.stderr):
            self.assertNotIn("s3cret-pw", stream)
            self.assertNotIn(base64.b64encode(b"me:s3cret-pw").decode(), stream)
        return done

    def environment(self, **variables):
        """Nothing of the caller's home; `variables` that are None are not set."""
        given = {"PATH": os.environ["PATH"], "HOME": str(self.home()), **variables}
        return {name: str(value) for name, value in given.items() if value is not None}

    def home(self):
        home = self.scratch / "home"
        home.mkdir(exist_ok=True)
        home.chmod(0o777)
        return home

    def config(self):
        return json.loads((self.home() / ".docker" / "config.json").read_text())

    def pushes(self, code=0, **options):
        """Whether a build may push there."""
        context = self.scratch / "context"
        if not context.exists():
            self.context(Dockerfile="FROM scratch\nCOPY Dockerfile /\n")
        return self.login("build", "-q", "-t", f"{self.host}/app", "--push", context, code=code, **options)

    def test_a_login_is_what_builds_push_with_and_a_logout_ends_it(self):
        refused = self.pushes(code=3)
        self.assertIn(f"log in with `layerwright login {self.host}`", refused.stderr)
        done = self.login("login", "-u", "me", "--password-stdin", self.host, password="s3cret-pw\n")
        self.assertEqual(done.stdout, "Login Succeeded\n")
        self.assertIn("is kept unencrypted in", done.stderr)
        file = self.home() / ".docker" / "config.json"
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.config()["auths"], {self.host: {"auth": base64.b64encode(b"me:s3cret-pw").decode()}})
        self.pushes()
        again = self.login("login", self.host, stdin=None, password="")
        self.assertIn("Authenticating with existing credentials", again.stderr)
        self.assertIn("[Username: me]", again.stderr)
        done = self.login("logout", self.host)
        self.assertEqual(done.stdout, f"Removing login credentials for {self.host}\n")
        self.assertEqual(self.login("logout", self.host).stdout, f"Not logged in to {self.host}\n")
        self.pushes(code=3)

    def test_a_login_that_fails_changes_nothing(self):
        file = self.scratch / "auth.json"
        text = '{\n  "credHelpers": {"other.example.com": "vault"},\n  "auths": {}\n}\n'
        file.write_text(text)
        wrong = self.login("login", "--authfile", file, "-u", "me", "-p", "wr0ng-pw", self.host, code=3)
        self.assertIn("check the user name and the password", wrong.stderr)
        self.assertIn("--password can be seen", wrong.stderr)
        self.assertNotIn("wr0ng-pw", wrong.stderr)
        gone = self.login("login", "--authfile", file, "-u", "me", "--password-stdin", "127.0.0.1:1", password="x", code=3)
        self.assertIn("cannot connect to 127.0.0.1:1", gone.stderr)
        for arguments, said in (
            (["login", self.host], "cannot ask for the user name: standard input is no terminal"),
            (["login", "-u", "me", self.host], "cannot ask for the password"),
            (["login", "--password-stdin", self.host], "--username"),
            (["login", "-u", "me", "-p", "x", "--password-stdin", self.host], "cannot be used with"),
            (["login", "-u", "me", "--password-stdin", self.host], "no password was given"),
            (["login", "-u", "", "--password-stdin", self.host], "no user name was given"),
            (["login", "-u", "me", "--password-stdin", "ftp://x"], "not a host name"),
            (["logout", "--all", self.host], "cannot be used with"),
        ):
            self.assertIn(said, self.login(*arguments, "--authfile", file, password="", code=2).stderr)
        self.assertEqual(file.read_text(), text)

    def test_the_file_is_where_docker_and_podman_look(self):
        for variables, file in (
            ({"DOCKER_CONFIG": self.scratch / "docker"}, self.scratch / "docker" / "config.json"),
            ({"REGISTRY_AUTH_FILE": self.scratch / "podman.json"}, self.scratch / "podman.json"),
            ({"DOCKER_CONFIG": self.scratch / "alone", "HOME": None}, self.scratch / "alone" / "config.json"),
        ):
            env = self.environment(**variables)
            self.login("login", "-u", "me", "--password-stdin", self.host, password="s3cret-pw", env=env)
            self.assertIn(self.host, json.loads(file.read_text())["auths"])
            self.pushes(env={**env, "XDG_DATA_HOME": str(self.scratch / "data")})
        listed = subprocess.run(["skopeo", "login", "--get-login", "--authfile", self.scratch / "podman.json", self.host],
                                stdout=subprocess.PIPE, text=True, check=True, timeout=WATCHDOG)
        self.assertEqual(listed.stdout.strip(), "me", "skopeo reads what we have written")
        nowhere = self.login("login", "-u", "me", "--password-stdin", self.host, password="s3cret-pw", code=2,
                             env=self.environment(HOME=None))
        self.assertIn("neither HOME nor DOCKER_CONFIG nor REGISTRY_AUTH_FILE is set", nowhere.stderr)
        hidden = self.login("logout", self.host, env=self.environment(DOCKER_AUTH_CONFIG="{}"))
        self.assertIn("DOCKER_AUTH_CONFIG is set, and goes before", hidden.stderr)

    def test_every_user_can_and_a_place_that_cannot_be_written_is_named(self):
        for user in USERS:
            home = self.scratch / f"home-{user}"
            home.mkdir(mode=0o700)
            subprocess.run(["chown", user, home], check=True)
            env = self.environment(HOME=home)
            self.login("login", "-u", "me", "--password-stdin", self.host, password="s3cret-pw", env=env, user=user)
            text = (home / ".docker" / "config.json").read_text()
            self.assertIn(self.host, json.loads(text)["auths"])
            self.assertEqual((home / ".docker" / "config.json").owner(), user)
            self.pushes(env=env, user=user)
            self.login("logout", "--all", env=env, user=user)
        locked = self.scratch / "locked"
        locked.mkdir(mode=0o755)
        refused = self.login("login", "-u", "me", "--password-stdin", self.host, password="s3cret-pw", code=4,
                             env=self.environment(DOCKER_CONFIG=locked), user="lw-one")
        self.assertIn(f"cannot write {locked}/config.json: Permission denied", refused.stderr)
        self.assertEqual(list(locked.iterdir()), [])

    def test_a_helper_keeps_what_it_is_named_for(self):
        programs = self.scratch / "bin"
        programs.mkdir()
        (programs / "docker-credential-vault").write_text(HELPER)
        (programs / "docker-credential-vault").chmod(0o755)
        directory = self.home() / ".docker"
        directory.mkdir()
        for settings in ({"credsStore": "vault"}, {"credHelpers": {self.host: "vault"}}):
            (directory / "config.json").write_text(json.dumps(settings))
            env = self.environment(PATH=f"{programs}:{os.environ['PATH']}")
            done = self.login("login", "-u", "me", "--password-stdin", self.host, password="s3cret-pw", env=env)
            self.assertNotIn("unencrypted", done.stderr)
            self.assertEqual(self.config(), {"auths": {self.host: {}}, **settings})
            self.assertIn("s3cret-pw", (programs / "kept" / self.host).read_text())
            self.pushes(env=env)
            scoped = self.login("login", "-u", "me", "--password-stdin", f"{self.host}/team", password="s3cret-pw", env=env,
                                code=2 if "credsStore" in settings else 0)
            self.assertEqual("keeps one login a registry" in scoped.stderr, "credsStore" in settings)
            gone = self.login("logout", "--all", env=env)
            self.assertIn(f"Removing login credentials for {self.host}\n", gone.stdout)
            self.assertEqual(list((programs / "kept").iterdir()), [])
            self.assertEqual(self.config(), {"auths": {}, **settings})
        missing = self.login("login", "-u", "me", "--password-stdin", self.host, password="s3cret-pw", code=4)
        named = f'credential helper "docker-credential-vault" of {directory}/config.json is not installed'
        self.assertIn(named, missing.stderr)
        self.assertEqual(self.config(), {"auths": {}, **settings})
        refused = self.pushes(code=3)
        self.assertIn(named, refused.stderr, "what a helper guards is not sought elsewhere")

    def test_a_login_to_repositories_is_for_them_only(self):
        self.login("login", "-u", "me", "--password-stdin", f"{self.host}/team", password="s3cret-pw")
        self.assertEqual(list(self.config()["auths"]), [f"{self.host}/team"])
        self.pushes(code=3)
        context = self.scratch / "context"
        self.login("build", "-q", "-t", f"{self.host}/team/app", "--push", context)

    def at_terminal(self, arguments, typed):
        """Runs at a terminal, types each text after its prompt, and gives what was seen and the exit code. The terminal
        must be as it was in the end."""
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        process = subprocess.Popen(
            self.command(*arguments), stdin=slave, stdout=slave, stderr=slave, env=self.environment(), close_fds=True,
            start_new_session=True)
        seen, deadline = b"", time.monotonic() + WATCHDOG
        waiting = list(typed)
        while time.monotonic() < deadline:
            ready, _, _ = select.select([master], [], [], 0.05)
            if ready:
                seen += os.read(master, 4096)
            if waiting and seen.endswith(waiting[0][0].encode()):
                prompt, text = waiting.pop(0)
                # What is typed before the echo is off would be seen, by a person too.
                if prompt == "Password: ":
                    while termios.tcgetattr(slave)[3] & termios.ECHO:
                        time.sleep(0.005)
                os.write(master, text.encode())
            if not ready and process.poll() is not None:
                break
        else:
            process.kill()
        self.assertEqual(termios.tcgetattr(slave), before, "the terminal is as it was")
        os.close(master)
        os.close(slave)
        return seen.decode(), process.wait(WATCHDOG)

    def test_a_person_is_asked_and_the_password_is_not_seen(self):
        seen, code = self.at_terminal(
            ["login", self.host], [(f"Username for {self.host}: ", "me\n"), ("Password: ", "x\x7fs3cret-pw\n")])
        self.assertEqual(code, 0, seen)
        self.assertIn("Login Succeeded", seen)
        self.assertNotIn("s3cret", seen)
        file = self.home() / ".docker" / "config.json"
        kept = file.read_text()
        stale = kept.replace(base64.b64encode(b"me:s3cret-pw").decode(), base64.b64encode(b"me:old").decode())
        file.write_text(stale)
        seen, code = self.at_terminal(["login", self.host], [(f"Username for {self.host} (me): ", "\n"), ("Password: ", "\x03")])
        self.assertEqual(code, 130, seen)
        self.assertIn("the login that is kept is good no more", seen)
        self.assertIn(f"the credentials from {file} were sent", seen.replace("\r\n", ""))
        self.assertEqual(file.read_text(), stale)
        seen, code = self.at_terminal(["login", "-u", "me", self.host], [("Password: ", "s3cret-pw\n")])
        self.assertEqual((code, file.read_text()), (0, kept), seen)
