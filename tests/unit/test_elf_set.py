"""Protects who provides what, load sequences and findings: on modules assembled here as the kernel's macros write them.

What real modules of one build never show: two layouts of exports, CRCs, namespaces, circles, mixtures of builds.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kbuild.elf.exports import Export
from kbuild.elf.image import ModuleImage, read_module
from kbuild.elf.inspect import Inspection, find_modules, inspect, with_dependencies
from kbuild.elf.kernel import KernelImage
from kbuild.elf.moduleset import ModuleSet
from kbuild.errors import UserError
from kbuild.outcome import Status

VERMAGIC = "6.1.192 SMP preempt mod_unload modversions"

# scripts/module.lds.S, 6.1, and with __kflagstab as the newer kernels have it.
LINKER_SCRIPT = """
SECTIONS {
    __ksymtab 0 : { *(SORT(___ksymtab+*)) }
    __ksymtab_gpl 0 : { *(SORT(___ksymtab_gpl+*)) }
    __kcrctab 0 : { *(SORT(___kcrctab+*)) }
    __kcrctab_gpl 0 : { *(SORT(___kcrctab_gpl+*)) }
    __kflagstab 0 : { *(SORT(___kflagstab+*)) }
}
"""

Build = Callable[..., Path]


def export_source(export: Export, flags: bool) -> str:
    """___EXPORT_SYMBOL and __KSYMTAB_ENTRY (include/linux/export.h, 6.1); SYMBOL_CRC (export-internal.h)."""
    name, section = export.name, "_gpl" if export.gpl and not flags else ""
    text = f"""
        .section "__ksymtab_strings","aMS",%progbits,1
        __kstrtab_{name}: .asciz "{name}"
        __kstrtabns_{name}: .asciz "{export.namespace}"
        .section "___ksymtab{section}+{name}", "a"
        .balign 4
        __ksymtab_{name}:
        .long {name} - .
        .long __kstrtab_{name} - .
        .long __kstrtabns_{name} - .
        .text
        .globl {name}
        {name}: ret
    """
    if export.crc is not None:
        text += f"""
        .section "___kcrctab{section}+{name}","a"
        .balign 4
        __crc_{name}: .long {export.crc}
        """
    if flags:
        text += f"""
        .section "___kflagstab+{name}","a"
        .byte {int(export.gpl)}
        """
    return text


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A function that makes a `.ko` from what it shall contain."""
    script = tmp_path / "module.lds"
    script.write_text(LINKER_SCRIPT)

    def make(
        name: str,
        *,
        exports: Sequence[Export] = (),
        imports: dict[str, int | None] | None = None,
        weak: Sequence[str] = (),
        modinfo: Sequence[str] = (),
        vermagic: str | None = VERMAGIC,
        depends: str = "",
        flags: bool = False,
        struct_module: int = 704,
        folder: str = "modules",
    ) -> Path:
        strings = [f"name={name.replace('-', '_')}", f"depends={depends}", "intree=Y", *modinfo]
        strings += [f"vermagic={vermagic} "] if vermagic is not None else []
        source = '.section ".modinfo","a"\n' + "".join(f'.asciz "{text}"\n' for text in strings)
        source += f'.section ".gnu.linkonce.this_module","aw"\n.zero {struct_module}\n'
        source += "".join(export_source(export, flags) for export in exports)
        source += ".text\n" + "".join(f"call {symbol}\n" for symbol in imports or {})
        source += "".join(f".weak {symbol}\ncall {symbol}\n" for symbol in weak)
        for symbol, crc in (imports or {}).items():
            if crc is not None:
                source += f'.section "__versions","a"\n.quad {crc}\n1: .asciz "{symbol}"\n.org 1b + 56\n'
        path = tmp_path / folder / f"{name}.ko"
        path.parent.mkdir(exist_ok=True)
        intermediate = tmp_path / "intermediate.o"
        subprocess.run(["as", "-o", intermediate, "-"], input=source, text=True, check=True)
        subprocess.run(["ld", "-r", "-T", script, "-o", path, intermediate], check=True)
        return path

    return make


def kernel(*exports: Export, vermagic: str | None = VERMAGIC) -> KernelImage:
    return KernelImage(release="6.1.192", vermagic=vermagic, exports={export.name: export for export in exports})


def ids(inspection: Inspection) -> set[str]:
    return {finding.id for finding in inspection.findings}


@pytest.mark.parametrize("flags", [False, True])
def test_both_layouts_of_exports(build: Build, flags: bool) -> None:
    exports = [
        Export("alpha", gpl=False, crc=0x11111111),
        Export("beta", gpl=True, namespace="SOME_NS", crc=0x22222222),
        Export("gamma", gpl=True, namespace="module:kvm-amd,kvm-intel", crc=0xFFFFFFFF),
    ]
    image = read_module(build("kvm", exports=exports, flags=flags))
    assert sorted(image.exports, key=lambda export: export.name) == exports


def test_local_symbols_are_not_needed(build: Build) -> None:
    """`strip --strip-unneeded` takes the symbols `__ksymtab_NAME`; the loader does not need them, nor do we."""
    path = build("kvm", exports=[Export("alpha", gpl=True, namespace="NS")])
    subprocess.run(["strip", "--strip-unneeded", path], check=True)
    image = read_module(path)
    assert not any(symbol.name == "__ksymtab_alpha" for symbol in image.symbols)
    assert image.exports == (Export("alpha", gpl=True, namespace="NS"),)


def test_extended_modversions(build: Build) -> None:
    long = "a_symbol_whose_name_does_not_fit_into_the_fifty_six_bytes_of_struct_modversion_info"
    path = build("kvm", imports={long: None, "short": None})
    subprocess.run(["as", "-o", path.with_suffix(".o"), "-"], check=True, text=True, input=f"""
        .section "__version_ext_crcs","a"
        .long 0x12345678, 0x9
        .section "__version_ext_names","a"
        .asciz "{long}"
        .asciz "short"
        """)  # fmt: skip
    linked = path.with_name("kvm-2.ko")
    subprocess.run(["ld", "-r", "-o", linked, path, path.with_suffix(".o")], check=True)
    image = read_module(linked)
    assert {used.name: used.crc for used in image.imports} == {long: 0x12345678, "short": 9}
    assert image.has_crcs


def test_a_file_of_another_name_is_called_as_the_kernel_calls_it(build: Build) -> None:
    path = build("kvm-amd")
    assert (read_module(path).name, read_module(path).kernel_name) == ("kvm-amd", "kvm_amd")
    renamed = path.rename(path.with_name("kvm-amd.mended.ko"))
    assert read_module(renamed).name == "kvm_amd"


def test_escape_sequences_stay_out_of_messages(build: Build) -> None:
    path = build("kvm", depends=r"evil\033[31m\nname")
    findings = inspect([path]).findings
    assert any("evil" in finding.message for finding in findings)
    assert all(finding.message.isprintable() for finding in findings)


def test_providers_and_load_sequence(build: Build) -> None:
    bypass = build("irqbypass", exports=[Export("bypass", gpl=True)])
    kvm = build("kvm", exports=[Export("kvm_init", gpl=True)], imports={"bypass": None, "_printk": None})
    # `depends` says nothing of irqbypass here: imports alone give the order between kvm and irqbypass.
    amd = build("kvm-amd", imports={"kvm_init": None, "_printk": None, "nowhere": None}, depends="kvm,ccp")
    images = [read_module(path) for path in (amd, kvm, bypass)]
    modules = ModuleSet.of(images, kernel(Export("_printk", gpl=False)))
    assert {(used.name, got.by, got.name) for used, got in modules.providers(modules["kvm_amd"])} == {
        ("kvm_init", "module", "kvm"),
        ("_printk", "kernel", None),
        ("nowhere", "nobody", "ccp"),
    }
    assert modules.load_sequence("kvm-amd") == ("irqbypass", "kvm")
    assert modules.load_sequence("kvm_amd") == ("irqbypass", "kvm")
    assert modules.load_sequence("irqbypass") == ()
    assert modules.missing_dependencies(modules["kvm-amd"]) == ("ccp",)
    assert ModuleSet.of(images, None).provider(images[0], "_printk").by == "unknown"
    with pytest.raises(UserError, match="there is no module kvm-intel"):
        modules.load_sequence("kvm-intel")


def test_a_circle_is_said(build: Build) -> None:
    one = build("one", exports=[Export("of_one", gpl=True)], imports={"of_two": None})
    two = build("two", exports=[Export("of_two", gpl=True)], imports={"of_one": None})
    with pytest.raises(UserError, match=r"one needs two needs one|two needs one needs two"):
        ModuleSet.of([read_module(one), read_module(two)], None).load_sequence("one")


def test_an_import_that_nobody_provides(build: Build) -> None:
    path = build("kvm-amd", imports={"sev_platform_init": None}, weak=["perhaps"], depends="ccp")
    judged = inspect([path], kernel(Export("_printk", gpl=False)))
    assert ids(judged) == {"inspect:unresolved-import:kvm-amd:sev_platform_init"}
    assert judged.verdict == Status.FAIL
    assert "ccp" in judged.findings[0].message
    unjudged = inspect([path])
    assert ids(unjudged) == {"inspect:missing-dependency:kvm-amd:ccp", "inspect:not-known:set:kernel-exports"}
    assert unjudged.verdict == Status.ERROR


def test_without_a_kernel_one_module_only_informs(build: Build) -> None:
    inspection = inspect([build("kvm", imports={"_printk": None})])
    assert ids(inspection) == {"inspect:not-known:set:kernel-exports"}
    assert inspection.verdict == Status.DONE


@pytest.mark.parametrize(
    ("vermagic", "crcs", "expected", "status"),
    [
        (VERMAGIC, False, set(), Status.PASS),
        ("6.1.191 SMP preempt mod_unload modversions", False, {"inspect:vermagic:kvm:differs"}, Status.FAIL),
        # same_magic() ignores the release of a module with CRCs, and nothing else.
        ("6.1.191 SMP preempt mod_unload modversions", True, {"inspect:vermagic:kvm:release"}, Status.ERROR),
        ("6.1.192 mod_unload modversions", True, {"inspect:vermagic:kvm:differs"}, Status.FAIL),
        (None, False, {"inspect:vermagic:kvm:missing"}, Status.FAIL),
    ],
)
def test_vermagic(build: Build, vermagic: str | None, crcs: bool, expected: set[str], status: Status) -> None:
    path = build("kvm", vermagic=vermagic, imports={"_printk": 7 if crcs else None})
    inspection = inspect([path], kernel(Export("_printk", gpl=False, crc=7 if crcs else None)))
    assert ids(inspection) == expected
    assert inspection.verdict == status


def test_only_the_release_is_known(build: Build) -> None:
    image = kernel(vermagic=None)
    assert ids(inspect([build("kvm")], image)) == {"inspect:not-known:set:kernel-vermagic"}
    other = inspect([build("kvm", vermagic="6.1.191 mod_unload")], image)
    assert "inspect:vermagic:kvm:differs" in ids(other)


def test_mixed_builds(build: Build) -> None:
    kvm = build("kvm", exports=[Export("kvm_init", gpl=True, crc=1)])
    same = build("kvm-amd", imports={"kvm_init": 1})
    assert inspect([kvm, same]).verdict == Status.PASS
    crc = inspect([kvm, build("kvm-amd", imports={"kvm_init": 2})])
    assert ids(crc) - ids(inspect([kvm])) == {"inspect:crc-mismatch:kvm-amd:kvm"}
    assert crc.verdict == Status.FAIL
    vermagic = inspect([kvm, build("kvm-amd", imports={"kvm_init": 1}, vermagic="6.1.192 mod_unload")])
    assert "inspect:mixed-builds:set:vermagic" in ids(vermagic)
    assert vermagic.verdict == Status.FAIL
    size = inspect([kvm, build("kvm-amd", imports={"kvm_init": 1}, struct_module=896)])
    assert "inspect:mixed-builds:set:struct-module" in ids(size)
    layout = inspect([build("kvm", imports={"module_layout": 5}), build("kvm-amd", imports={"module_layout": 6})])
    assert "inspect:mixed-builds:set:module-layout" in ids(layout)


def test_the_kernels_crcs(build: Build) -> None:
    path = build("kvm", imports={"_printk": 7, "module_layout": 5})
    exports = [Export("_printk", gpl=False, crc=7), Export("module_layout", gpl=False, crc=5)]
    assert inspect([path], kernel(*exports)).verdict == Status.PASS
    other = inspect([path], kernel(exports[0], Export("module_layout", gpl=False, crc=6)))
    assert ids(other) == {"inspect:crc-mismatch:kvm:kernel"}


@pytest.mark.parametrize(
    ("namespace", "name", "modinfo", "allowed"),
    [
        ("CRYPTO", "kvm-amd", [], False),
        ("CRYPTO", "kvm-amd", ["import_ns=OTHER", "import_ns=CRYPTO"], True),
        ("module:kvm-amd,kvm-intel", "kvm-intel", [], True),
        ("module:kvm_amd", "kvm-amd", [], True),
        ("module:kvm", "kvm-amd", [], False),
        ("module:kvm-*", "kvm-amd", [], True),
        ("module:kvm", "kvm-amd", ["import_ns=module:kvm"], False),
    ],
)
def test_namespaces(build: Build, namespace: str, name: str, modinfo: list[str], allowed: bool) -> None:
    path = build(name, imports={"limited": None}, modinfo=modinfo)
    inspection = inspect([path], kernel(Export("limited", gpl=True, namespace=namespace)))
    expected = set() if allowed else {f"inspect:namespace:{name}:{namespace.replace(':', '_')}"}
    assert ids(inspection) == expected


def test_a_symbol_that_two_export(build: Build) -> None:
    paths = [build(name, exports=[Export("twice", gpl=True)]) for name in ("one", "two")]
    assert ids(inspect(paths, kernel())) == {"inspect:duplicate-export:two:twice"}


def test_the_same_module_twice(build: Build) -> None:
    first = build("kvm-amd")
    second = build("kvm_amd", folder="others")
    with pytest.raises(UserError, match="twice") as caught:
        find_modules(first.parent.parent)
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)
    # Under another file name it is still the same module.
    renamed = second.rename(second.with_name("renamed.ko"))
    with pytest.raises(UserError, match="twice"):
        inspect([first, renamed])


def test_of_many_files_only_what_is_needed(build: Build) -> None:
    wanted = [build("irqbypass"), build("kvm", depends="irqbypass"), build("kvm-amd", depends="kvm,ccp")]
    other = build("other", depends="kvm-amd")
    other.write_bytes(b"not read")
    paths = find_modules(other.parent)
    assert paths == sorted([*wanted, other])
    assert with_dependencies(paths, ["kvm_amd"]) == sorted(wanted)
    with pytest.raises(UserError, match="kvm-intel"):
        with_dependencies(paths, ["kvm-intel"])


def test_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no modules"):
        find_modules(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        find_modules(tmp_path / "missing")


def test_all_suffixes_are_found(tmp_path: Path) -> None:
    names = ["a/one.ko", "b/two.ko.xz", "three.ko.zst", "four.ko.gz"]
    for name in [*names, "five.o", "six.mod", ".ko", "seven.ko.bz2"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_modules(tmp_path) == sorted(tmp_path / name for name in names)


def test_image_has_no_surprises(build: Build) -> None:
    image: ModuleImage = read_module(
        build("kvm", modinfo=["parm=ept:use it", "parmtype=ept:bool", "parmtype=plain:int", "license=GPL", "noise"])
    )
    assert [(p.name, p.type, p.description) for p in image.parameters] == [
        ("ept", "bool", "use it"),
        ("plain", "int", None),
    ]
    assert image.vermagic == VERMAGIC
    assert image.license == "GPL"
    assert not image.signed
