"""Why times in layers are what they are: each reason with the real tool. (httpd's and nginx's ETags: scripts/workshops.)"""

import os
import subprocess
import unittest

from support import REPO, Case, Layout, Registry

SAME_SIZE = ("print('one')\n", "print('two')\n")


class CopiedFiles(Case):
    """What RUN does to a file that COPY brought keeps the time that follows its content."""

    DOCKERFILE = """\
FROM busybox
COPY page /www/page
RUN mkdir /moved /kept /packed && chmod 600 /www/page && cp -a /www/page /kept/page \\
 && tar -C /www -cf /tmp/page.tar page && tar -C /packed -xf /tmp/page.tar && rm /tmp/page.tar && mv /www/page /moved/page
"""

    def times(self, text, number):
        context = self.context(f"c{number}", Dockerfile=self.DOCKERFILE, page=text)
        layout = Layout(self.build(context, name=f"c{number}"))
        found = {}
        for layer in list(layout.layers())[1:]:
            found |= {name: member.mtime for name, member in layer.items() if name.endswith("page")}
        return {found[name] for name in ("moved/page", "kept/page", "packed/page")}

    def test_chmod_mv_cp_and_tar(self):
        one, two, again = (self.times(text, number) for number, text in enumerate((*SAME_SIZE, SAME_SIZE[0])))
        self.assertEqual(len(one), 1, one)
        self.assertNotEqual(one, two)
        self.assertEqual(one, again)


class Python(Case):
    """Byte code that a build leaves behind is never taken for that of another source, and holds no clock."""

    DOCKERFILE = """\
FROM python
COPY module.py /app/module.py
RUN python -m compileall -q /app
WORKDIR /app
CMD ["python", "-c", "import module"]
"""

    def run_image(self, layout):
        """What the image's command prints, run by crun."""
        script = 'source "$1/scripts/lib.sh"; run_layout "$2" latest'
        return subprocess.check_output(["bash", "-c", script, "bash", REPO, layout], text=True)

    def test_byte_code_follows_its_source(self):
        with Registry(self.scratch / "registry") as registry:
            subprocess.run([REPO / "scripts" / "bases", registry.host, "debian", "python"], check=True,
                           env={**os.environ, "BASES_PROGRESS": "quiet"})
            python = ["--build-context", f"python=docker-image://{registry.host}/python:latest", "-t", "app:latest"]
            digests = []
            for number, text in enumerate((*SAME_SIZE, SAME_SIZE[0])):
                context = self.context(f"py{number}", Dockerfile=self.DOCKERFILE, module_DOT_py=text)
                root = self.scratch / f"store-py{number}"
                root.mkdir()
                layout = self.build(context, *python, name=f"py{number}", root=root)
                self.assertEqual(self.run_image(layout), text.split("'")[1] + "\n")
                code = Layout(layout).read("app/__pycache__/module.cpython-311.pyc")
                self.assertEqual(int.from_bytes(code[4:8], "little") & 1, 1, "checked by hash, not by time (PEP 552)")
                digests.append(Layout(layout).digest)
            self.assertEqual(digests[0], digests[2], "an empty store and later times give the same digest")
            self.assertNotEqual(digests[0], digests[1])


if __name__ == "__main__":
    unittest.main()
