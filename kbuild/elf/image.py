"""One module file: what it is, what it needs, what it gives."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Literal

import msgspec

from kbuild.elf import contents
from kbuild.elf.contents import MalformedError
from kbuild.elf.exports import Export, exports_of
from kbuild.elf.object import ElfObject, Part, Section, Symbol, cstring, printable
from kbuild.elf.references import InitReference, init_references
from kbuild.errors import UserError

SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")

_SIGNED = b"~Module signature appended~\n"
_MODVERSION_BYTES = 64
_KEPT = "kept"
"""Not a field: it says nothing that these do not."""


class Import(msgspec.Struct, frozen=True, gc=False):
    """An undefined symbol that the module loader has to resolve."""

    name: str
    weak: bool
    """Nobody has to provide it."""
    crc: int | None
    """The CRC that the module was built against; None: without CONFIG_MODVERSIONS."""


class Parameter(msgspec.Struct, frozen=True):
    """A module parameter, from `.modinfo`'s `parm` and `parmtype` (include/linux/moduleparam.h)."""

    name: str
    type: str | None
    """Such as `bool`, `uint`, `array of int`; None: not said."""
    description: str | None


class ModuleImage(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One parsed `.ko`."""

    name: str
    """As `depends` writes it and the file is called: `kvm-amd`."""
    kernel_name: str
    """As /sys/module and the log write it: `kvm_amd`."""
    path: Path
    sha256: str
    """Of the file as it is, compressed or not."""
    size: int
    """Of the file as it is, in bytes."""
    vermagic: str | None
    """Without blanks at its end."""
    depends: tuple[str, ...]
    license: str | None
    srcversion: str | None
    build_id: str | None
    in_tree: bool
    signed: bool
    import_namespaces: tuple[str, ...]
    modinfo: tuple[tuple[str, str], ...]
    """All tags and values of `.modinfo`, in the file's order; line breaks and the like are escaped."""
    sections: tuple[Section, ...]
    """Without the null section."""
    symbols: tuple[Symbol, ...]
    """Without the null symbol. `Symbol.section` is a `Section.index`."""
    imports: tuple[Import, ...]
    exports: tuple[Export, ...]
    parameters: tuple[Parameter, ...]
    has_crcs: bool
    """There is a CRC for each import; then the loader does not compare the release in the vermagic."""
    module_layout_crc: int | None
    """The CRC of `module_layout`: one for all modules of a build with CONFIG_MODVERSIONS."""
    struct_module_size: int
    """sizeof(struct module): one for all modules of a build."""
    init_references: tuple[InitReference, ...]
    """What stays in memory and refers to the init part; nearly always nothing."""
    init_pointers: tuple[InitReference, ...]
    """What init data points to in the init part."""

    def object(self) -> ElfObject:
        """Its file, parsed: as it was kept, or read again. Raises UserError, MalformedError."""
        kept: ElfObject | None = self.__dict__.get(_KEPT)
        return kept if kept is not None else ElfObject(contents.decompressed(contents.read(self.path)))

    @property
    def traits(self) -> tuple[str, ...]:
        """How it was built and packed, as far as the loader or an analysis has to cope with it, in a fixed order."""
        sections = {section.name for section in self.sections}
        packed = self.path.suffix.removeprefix(".")
        there = {
            f"{packed}-compressed": packed != "ko",
            "signed": self.signed,
            "out of tree": not self.in_tree,
            "modversions": self.has_crcs,
            "retpolines": ("retpoline", "Y") in self.modinfo,
            "ftrace": "__mcount_loc" in sections,
            "BTF": ".BTF" in sections,
            "DWARF": ".debug_info" in sections,
        }
        return tuple(name for name, holds in there.items() if holds)

    def bytes_in(self, part: Part, kind: Literal["text", "data"] | None = None) -> int:
        """Size of a part's sections in memory, without padding; `text` is executable, `data` all else."""
        return sum(
            section.size
            for section in self.sections
            if section.part == part and kind in (None, "text" if "X" in section.flags else "data")
        )


def module_key(name: str) -> str:
    """The one spelling under which modules are found: `kvm-amd` and `kvm_amd` are the same to the kernel."""
    return name.replace("-", "_")


def file_module_name(path: Path) -> str | None:
    """`kvm-amd` for `…/kvm-amd.ko.xz`; None for what is no module by its name."""
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    return path.name.removesuffix(suffix) if suffix and path.name != suffix else None


def read_module(path: Path, *, keep: bool = True) -> ModuleImage:
    """Read a module file. Raises UserError in one line that names the file and what is wrong with it.

    `keep`: what was parsed is kept for `ModuleImage.object`, as long as the image is there.
    """
    raw = contents.read(path)
    try:
        return parse_module(raw, path, keep=keep)
    except MalformedError as problem:
        raise UserError(f"{path}: {problem}") from None


def parse_module(raw: bytes, path: Path, *, keep: bool = True) -> ModuleImage:
    """Like `read_module`, of bytes that came from `path`. Raises MalformedError."""
    elf = ElfObject(contents.decompressed(raw))
    if not elf.relocatable:
        raise MalformedError("an executable or a shared object, not a kernel module")
    this_module = elf.by_name.get(".gnu.linkonce.this_module")
    modinfo = _modinfo(elf.content(elf.by_name.get(".modinfo")))
    if this_module is None or not modinfo:
        missing = ".gnu.linkonce.this_module" if this_module is None else ".modinfo"
        raise MalformedError(f"an ELF object, but not a kernel module: it has no section {missing}")
    if not elf.symbols:
        raise MalformedError("a kernel module without a symbol table (stripped): the kernel does not load it")
    first: dict[str, str] = {}
    for tag, value in modinfo:
        first.setdefault(tag, value)
    versions = _versions(elf)
    stays, goes = init_references(elf)
    by_file = file_module_name(path) or path.name
    kernel_name = first.get("name") or module_key(by_file)
    image = ModuleImage(
        name=by_file if module_key(by_file) == module_key(kernel_name) else kernel_name,
        kernel_name=kernel_name,
        path=path,
        sha256=hashlib.sha256(raw).hexdigest(),
        size=len(raw),
        vermagic=first["vermagic"].rstrip() if "vermagic" in first else None,
        depends=tuple(name for name in first.get("depends", "").split(",") if name),
        license=first.get("license"),
        srcversion=first.get("srcversion"),
        build_id=build_id_of(elf.content(elf.by_name.get(".note.gnu.build-id"))),
        in_tree="intree" in first,
        signed=elf.data[-len(_SIGNED) :] == _SIGNED,
        import_namespaces=tuple(value for tag, value in modinfo if tag == "import_ns"),
        modinfo=modinfo,
        sections=elf.sections[1:],
        symbols=elf.symbols[1:],
        imports=_imports(elf, versions),
        exports=exports_of(elf),
        parameters=_parameters(modinfo),
        has_crcs=bool(versions),
        module_layout_crc=versions.get("module_layout"),
        struct_module_size=this_module.size,
        init_references=stays,
        init_pointers=goes,
    )
    if keep:
        image.__dict__[_KEPT] = elf
    return image


def _modinfo(content: bytes) -> tuple[tuple[str, str], ...]:
    pairs = (printable(entry).partition("=") for entry in content.split(b"\0") if entry)
    return tuple((tag, value) for tag, separator, value in pairs if separator)


def _imports(elf: ElfObject, versions: dict[str, int]) -> tuple[Import, ...]:
    """Undefined symbols, as `simplify_symbols()` takes them (kernel/module/main.c, 6.1).

    `_GLOBAL_OFFSET_TABLE_` is what `ignore_undef_symbol()` ignores on x86.
    """
    names = {
        symbol.name: symbol.binding == "weak"
        for symbol in elf.symbols[1:]
        if not symbol.defined and symbol.name not in ("", "_GLOBAL_OFFSET_TABLE_")
    }
    return tuple(Import(name, weak, versions.get(name)) for name, weak in names.items())


def _versions(elf: ElfObject) -> dict[str, int]:
    """The CRCs that the module was built against, by symbol.

    `struct modversion_info` (include/linux/module.h): an unsigned long and a name of 56 bytes; with
    CONFIG_EXTENDED_MODVERSIONS (newer than 6.12) also CRCs and names of any length in two sections.
    """
    versions: dict[str, int] = {}
    content = elf.content(elf.by_name.get("__versions"))
    for start in range(0, len(content) - _MODVERSION_BYTES + 1, _MODVERSION_BYTES):
        crc = struct.unpack_from("<Q", content, start)[0]
        versions[_fixed(content[start + 8 : start + _MODVERSION_BYTES])] = crc & 0xFFFFFFFF
    crcs = elf.content(elf.by_name.get("__version_ext_crcs"))
    names = elf.content(elf.by_name.get("__version_ext_names"))
    offset = 0
    for (crc,) in struct.iter_unpack("<I", crcs[: len(crcs) // 4 * 4]):
        if offset >= len(names):
            break
        name = cstring(names, offset)
        offset = names.index(b"\0", offset) + 1
        versions[name] = crc
    return versions


def _fixed(field: bytes) -> str:
    return printable(field.partition(b"\0")[0])


def _parameters(modinfo: tuple[tuple[str, str], ...]) -> tuple[Parameter, ...]:
    found: dict[str, dict[str, str]] = {"parmtype": {}, "parm": {}}
    for tag, value in modinfo:
        if tag in found:
            name, _, text = value.partition(":")
            found[tag].setdefault(name, text)
    types, descriptions = found["parmtype"], found["parm"]
    return tuple(Parameter(name, types.get(name), descriptions.get(name)) for name in {**types, **descriptions})


def build_id_of(note: bytes) -> str | None:
    """The descriptor of the `GNU` note of type 3, in hexadecimal."""
    if len(note) < 16:
        return None
    name_size, size, kind = struct.unpack_from("<III", note)
    if kind != 3 or name_size != 4 or note[12:16] != b"GNU\0":
        return None
    return note[16 : 16 + size].hex() or None
