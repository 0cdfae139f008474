"""Disk images: a Debian suite with a real systemd, built once and kept until the recipe changes."""
import fcntl
import hashlib
import inspect
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
RECIPE = HERE / "image"
HOME = Path(os.environ.get("GUARDIAN_LAB", HERE.parent.parent / "target/vm"))
PACKAGES = ("systemd-sysv dbus dbus-user-session libpam-systemd polkitd passwd procps python3 python3-dbus python3-gi libglib2.0-bin "
            "rpm sqlite3 at cron util-linux e2fsprogs git mount udev kmod iproute2 busybox-static").split()

# What the host has to have: program, and the Debian package of it.
PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mmdebstrap": "mmdebstrap",
            "fakeroot": "fakeroot", "mkfs.ext4": "e2fsprogs"}


def missing_programs():
    """The Debian packages that a lab needs and this host has not."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    return [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]


def fingerprint(suite):
    """Changes when anything does that goes into the image."""
    digest = hashlib.sha256(" ".join([suite, *PACKAGES]).encode())
    digest.update(inspect.getsource(build).encode())
    for file in sorted(RECIPE.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def ensure(suite):
    """The directory with vmlinuz, initrd and root.ext4 of the suite, built if it is not there or the recipe changed."""
    HOME.mkdir(parents=True, exist_ok=True)
    image, half = HOME / suite, HOME / f"{suite}.half"
    with open(HOME / f"{suite}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the second builder waits, and finds the first one's image
        stamp = image / "recipe"
        recipe = fingerprint(suite)  # of before, should it change meanwhile
        if stamp.exists() and stamp.read_text() == recipe:
            return image
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        build(suite, half)
        (half / "recipe").write_text(recipe)
        shutil.rmtree(image, ignore_errors=True)
        half.rename(image)  # only a whole image ever has this name
    return image


def build(suite, into):
    """vmlinuz, initrd and root.ext4 of the suite. It needs no root: mmdebstrap finds its way, fakeroot owns the files."""
    subprocess.run(["mmdebstrap", "--quiet", "--variant=apt", "--include=" + ",".join(PACKAGES),
                    f"--customize-hook=copy-in {RECIPE} /", '--customize-hook=chroot "$1" sh /image/customize',
                    suite, into / "root.tar"], check=True)
    disk = """
        mkdir root
        tar --extract --file root.tar --directory root --exclude './dev/*'
        mv root/boot/vmlinuz root/boot/initrd .
        truncate --size 3G root.ext4
        PATH=$PATH:/usr/sbin mkfs.ext4 -q -F -L root -d root root.ext4
        rm -r root root.tar
    """
    subprocess.run(["fakeroot", "sh", "-euc", disk], cwd=into, check=True)
