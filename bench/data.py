"""Makes the contexts of the workloads from fixed seeds: `python3 bench/data.py NAME DIR`.

A process of its own, so that the memory this takes is not taken for that of what is measured.
"""

import pathlib
import random
import sys

MIB = 1 << 20


def text(seed, size):
    """Words of a skewed distribution, in lines: gzip makes about 2.7 times less of it."""
    source = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(source.choices(letters, k=source.randint(2, 11))) for _ in range(4000)]
    weights = [1 / (rank + 1) ** 0.9 for rank in range(len(words))]
    made, length = [], 0
    while length < size:
        drawn = source.choices(words, weights, k=24_000)
        block = "".join(" ".join(drawn[at:at + 12]) + "\n" for at in range(0, len(drawn), 12)).encode()
        made.append(block)
        length += len(block)
    return b"".join(made)[:size]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def w1(directory):
    """A small application: ten instructions and eleven files."""
    write(directory / "Dockerfile", b"FROM busybox\nENV APP_HOME=/app LANG=C.UTF-8\nLABEL org.example.bench=w1\nWORKDIR /app\n"
          b"COPY requirements.txt ./\nRUN mkdir -p /app/deps && cp requirements.txt /app/deps/lock\nCOPY src ./src\n"
          b"RUN cat src/* > /app/bundle\nEXPOSE 8080\nCMD [\"/bin/sh\", \"-c\", \"cat /app/bundle\"]\n")
    write(directory / "requirements.txt", b"one==1\ntwo==2\n")
    for number in range(10):
        write(directory / "src" / f"m{number}.txt", f"module {number}\n".encode())


def w2(directory):
    """20,000 files of 1 to 19 KiB, every other one text, and ten of 20 MiB, half text: 400 MB."""
    words, noise = text(1, 32 * MIB), random.Random(2).randbytes(32 * MIB)
    source = random.Random(3)
    for number in range(20_000):
        material = noise if number % 2 else words
        size = source.randint(1 << 10, 19 << 10)
        begin = source.randrange(len(material) - size)
        write(directory / "src" / f"d{number // 100:03}" / f"f{number % 100:02}", material[begin:begin + size])
    for number in range(10):
        part = slice(number * MIB, (number + 10) * MIB)
        write(directory / "src" / "big" / str(number), words[part] + noise[part])
    write(directory / "Dockerfile", b"FROM busybox\nCOPY src /src\n")


def w3(directory):
    """Thirty steps that do nothing; equal ones would run once."""
    write(directory / "Dockerfile", ("FROM busybox\n" + "".join(f"RUN true # {step}\n" for step in range(30))).encode())


def w4(directory):
    """One step that writes 1 GiB, half text and half noise."""
    write(directory / "seed" / "text", text(1, 32 * MIB))
    write(directory / "seed" / "noise", random.Random(2).randbytes(32 * MIB))
    write(directory / "Dockerfile", b"FROM busybox\nCOPY seed /seed\n"
          b"RUN mkdir /out && for i in $(seq 16); do cat /seed/text /seed/noise > /out/$i; done\n")


def w5(directory):
    """Four stages that wait."""
    stages = "".join(f"FROM busybox AS {name}\nRUN sleep 5; echo {name} > /{name}\n" for name in "abcd")
    copies = "".join(f"COPY --from={name} /{name} /\n" for name in "abcd")
    write(directory / "Dockerfile", (stages + "FROM busybox\n" + copies).encode())


def pull(directory):
    """The least that makes a builder unpack a base."""
    write(directory / "Dockerfile", b"FROM large\nRUN true\n")


def w6(directory):
    """Two stages, of which the first has layers of some 40 MB each; ten small sources come late."""
    write(directory / "seed" / "text", text(1, 20 * MIB))
    write(directory / "seed" / "rand", random.Random(2).randbytes(20 * MIB))
    for number in range(10):
        write(directory / "src" / f"m{number}.txt", f"module {number}\n".encode() * 50)
    write(directory / "Dockerfile", b"""\
FROM debian:bookworm AS build
COPY seed /seed
RUN mkdir /s1 && cat /seed/rand > /s1/x && cat /seed/text >> /s1/x
RUN mkdir /s2 && for i in $(seq 1 400); do head -c 100000 /seed/rand > /s2/$i; done
COPY src /src
RUN sleep 2; cat /src/* > /artifact
FROM debian:bookworm
COPY --from=build /artifact /usr/local/share/artifact
RUN sleep 1; sha256sum /usr/local/share/artifact > /usr/local/share/artifact.sum
""")


def w6_steps(directory):
    """Twenty steps that a cache far away has."""
    write(directory / "Dockerfile", ("FROM small\n" + "".join(f"RUN echo {step} > /f{step}\n" for step in range(20))).encode())


def w7(directory):
    """A small application on a large base, which nothing runs on."""
    write(directory / "Dockerfile", b"FROM large\nWORKDIR /app\nCOPY app /app\nCMD [\"python3\", \"/app/main.py\"]\n")
    write(directory / "app" / "main.py", b"print('hello')\n")
    for number in range(20):
        write(directory / "app" / "lib" / f"m{number}.py", f"value = {number}\n".encode() * 50)


def w8(directory):
    """The step that most images have."""
    write(directory / "Dockerfile", f"FROM debian:bookworm\nRUN {APT}\n".encode())


APT = ("apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends curl git ca-certificates"
       " && rm -rf /var/lib/apt/lists/*")


if __name__ == "__main__":
    {"w1": w1, "w2": w2, "w3": w3, "w4": w4, "w5": w5, "w6": w6, "w6-steps": w6_steps, "pull": pull, "w7": w7, "w8": w8}[sys.argv[1]](pathlib.Path(sys.argv[2]))
