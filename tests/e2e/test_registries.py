"""How registries are reached: certificates, mirrors and proxies, by flags, variables and files, as every kind of user."""

import pathlib
import shutil
import socket
import subprocess

from servers import Proxy
from support import USERS, WATCHDOG, Case, Registry

DOCKERFILE = "FROM scratch\nCOPY Dockerfile /\n"


class Pki:
    """An authority of openssl's making, and what it signs."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir()
        self.ca = self.directory / "ca.crt"
        self.openssl("req", "-x509", *self.new_key("ca.key"), "-subj", f"/CN={self.directory.name}", "-days", "2",
                     "-addext", "keyUsage=critical,keyCertSign", "-out", self.ca)

    def sign(self, name, names=None):
        """A certificate and its key: for a server of these names, or for a client."""
        usage = f"serverAuth\nsubjectAltName={names}" if names else "clientAuth"
        (self.directory / "ext").write_text(f"basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\n")
        self.openssl("req", "-new", *self.new_key(f"{name}.key"), "-subj", f"/CN={name}", "-out", "csr")
        self.openssl("x509", "-req", "-in", "csr", "-CA", self.ca, "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
                     "-extfile", "ext", "-out", f"{name}.cert")
        return self.directory / f"{name}.cert", self.directory / f"{name}.key"

    @staticmethod
    def new_key(name):
        return "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", name

    def openssl(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=self.directory, check=True, capture_output=True,
                       timeout=WATCHDOG)


def other_address():
    """An address of this machine that is not its loopback, if it has one. Nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = probe.getsockname()[0]
    return None if address.startswith(("127.", "0.")) else address


class Registries(Case):
    def home(self, user="root"):
        """A home of the user's own, with nothing in it."""
        home = self.scratch / f"home-{user}"
        home.mkdir(exist_ok=True)
        shutil.chown(home, user, user)
        return home

    def give(self, user, source, *places):
        """Copies of a file at these places of the user's home, for nobody else to read."""
        for place in places:
            path = self.home(user) / place
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, path)
            path.chmod(0o600)
            subprocess.run(["chown", "-R", f"{user}:{user}", self.home(user)], check=True)
        return path

    def pushed(self, host, *flags, user="root", code=0, dockerfile=DOCKERFILE, name="team/app", **variables):
        """Builds, pushes there and gives what is told on standard error."""
        context = self.scratch / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        command = self.command("build", "--progress", "plain", *flags, "-t", f"{host}/{name}", "--push", context, user=user)
        variables = {"HOME": self.home(user), "XDG_CONFIG_HOME": "", **variables}
        at = 0 if user == "root" else 4
        command[at:at] = ["env", *(f"{name}={value}" for name, value in variables.items())]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=WATCHDOG,
                              cwd=self.scratch)
        self.assertEqual(done.returncode, code, f"{flags} {variables}: {done.stderr}")
        self.assertNotIn("-pw", done.stdout + done.stderr, "a password")
        return done.stderr

    def test_certificates_by_flag_variable_and_folder(self):
        pki = Pki(self.scratch / "pki")
        client = pki.sign("client")
        tls = pki.sign("server", "IP:127.0.0.1")
        with Registry(self.scratch / "one", tls=tls, clients=pki.ca) as both, \
             Registry(self.scratch / "two", tls=tls) as private:
            for user in USERS:
                ca = self.give(user, pki.ca, "ca.pem")
                cert, key = (self.give(user, file, file.name) for file in client)
                flags = "--registry-certificate", f"{both.host}={ca}"
                self.pushed(both.host, *flags, "--registry-client-cert", f"{both.host}={cert},{key}", user=user)
                folder = f".config/docker/certs.d/{both.host}"
                for source, name in ((pki.ca, "ca.crt"), (client[0], "me.cert"), (client[1], "me.key")):
                    self.give(user, source, f"{folder}/{name}")
                self.pushed(both.host, user=user)
            told = self.pushed(private.host, code=3)
            self.assertIn(f"--registry-certificate {private.host}=CA.pem", told)
            self.pushed(private.host, SSL_CERT_FILE=pki.ca)
            self.pushed(private.host, "--skip-tls-verify-registry", private.host)
            variables = {"LAYERWRIGHT_REGISTRY_CERTIFICATE": f"x={pki.ca} {both.host}={pki.ca}", "HOME": self.scratch}
            told = self.pushed(both.host, code=3, **variables)
            self.assertIn(f"{both.host}: it wants a client certificate", told)
            self.pushed(both.host, LAYERWRIGHT_REGISTRY_CLIENT_CERT=f"{both.host}={client[0]},{client[1]}", **variables)

    def test_base_images_come_from_mirrors(self):
        with Registry(self.scratch / "mirror") as mirror, Registry(self.scratch / "own") as own:
            self.pushed(mirror.host, name="hub/base:1")
            self.pushed(mirror.host, name="team/base:1")
            # Nothing answers at that name: an image that is had is the mirror's.
            dockerfile = "FROM registry.invalid/team/base:1\nCOPY Dockerfile /two\n"
            for user in USERS:
                conf = self.home(user) / ".config/containers/registries.conf"
                source = self.scratch / "conf"
                source.write_text('unqualified-search-registries = ["registry.invalid"]\n[[registry]]\n'
                                  f'prefix = "*.invalid"\n[[registry.mirror]]\nlocation = "{mirror.host}"\n')
                self.give(user, source, conf)
                self.pushed(own.host, user=user, dockerfile=dockerfile)
                source.write_text('[[registry]]\nlocation = "registry.invalid"\nblocked = true\n')
                self.give(user, source, conf)
                told = self.pushed(own.host, user=user, dockerfile=dockerfile, code=3)
                self.assertIn(f"is blocked by {conf}:1", told)
            source.write_text("[[registry]]\n\nlocation =\n")
            self.assertIn(f"{source}:3: ", self.pushed(own.host, code=3, CONTAINERS_REGISTRIES_CONF=source))
            flag = {"LAYERWRIGHT_REGISTRY_MIRROR": f"registry.invalid/team={mirror.host}/hub", "HOME": self.scratch}
            self.pushed(own.host, dockerfile=dockerfile, **flag)
            # Docker Hub's, where no registry is named.
            hub = "FROM team/base:1\nCOPY Dockerfile /two\n"
            self.pushed(own.host, "--registry-mirror", f"http://{mirror.host}", dockerfile=hub)
            self.assertEqual([path for _, path, _ in mirror.requests() if "app" in path], [], "a push goes to no mirror")
            gone = self.pushed(own.host, "--registry-mirror", f"{own.host}=127.0.0.1:1",
                               dockerfile=f"FROM {own.host}/team/app\nCOPY Dockerfile /3\n")
            self.assertEqual(gone.count("mirror 127.0.0.1:1 is passed over: cannot connect"), 1, gone)
            shown = self.run_layerwright("inspect", "--registry-mirror", f"{own.host}=127.0.0.1:1", f"{own.host}/team/app")
            self.assertEqual(shown.stderr.count("warning: mirror 127.0.0.1:1 is passed over"), 1, shown.stderr)

    def test_proxies_are_gone_through_and_their_passwords_not_told(self):
        address = other_address()
        if not address:
            self.skipTest("this machine has no address but its loopback's")
        pki = Pki(self.scratch / "pki")
        tls = pki.sign("server", f"IP:{address}")
        with Registry(self.scratch / "tls", tls=tls, address=address) as secure, \
             Registry(self.scratch / "plain", address=address) as plain, \
             Registry(self.scratch / "here") as here, Proxy() as proxy:
            trusted = "--registry-certificate", f"{secure.host}={pki.ca}"
            insecure = "--insecure-registry", plain.host

            def asked(host, *flags, **options):
                """What the proxy was asked for meanwhile."""
                before = len(proxy.log)
                told = self.pushed(host, *flags, **options)
                return told, proxy.log[before:]

            for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
                _, log = asked(secure.host, *trusted, **{variable: proxy.url})
                self.assertEqual(set(log), {f"CONNECT {secure.host}"}, variable)
            flags = "--registry-certificate", f"{secure.host}={self.give('lw-sub', pki.ca, 'ca.pem')}"
            _, log = asked(secure.host, *flags, user="lw-sub", HTTPS_PROXY=proxy.url)
            self.assertEqual(set(log), {f"CONNECT {secure.host}"})
            for variable in ("HTTP_PROXY", "http_proxy"):
                _, log = asked(plain.host, *insecure, **{variable: proxy.url})
                self.assertIn(f"HEAD http://{plain.host}/v2/team/app/manifests/latest", log, variable)
            for variable in ("NO_PROXY", "no_proxy"):
                self.assertEqual(asked(secure.host, *trusted, HTTPS_PROXY=proxy.url, **{variable: address})[1], [])
            self.assertEqual(asked(here.host, ALL_PROXY=proxy.url, HTTP_PROXY=proxy.url)[1], [])

            told, log = asked(secure.host, *trusted, code=3, HTTPS_PROXY=proxy.stranger)
            self.assertTrue(log)
            self.assertIn("proxy", told)
            gone = "http://me:g0ne-pw@127.0.0.1:1"
            told, _ = asked(secure.host, *trusted, code=3, HTTPS_PROXY=gone)
            self.assertIn("HTTPS_PROXY", told)
