"""Inspect: what the module files say, read from the files alone.

Takes `.ko` files (also `.ko.xz`, `.ko.zst`, `.ko.gz`) and what is at hand of the kernel that they are for
(bzImage, vmlinux, Module.symvers, System.map). Gives module images, the module set with who provides each
import, and findings. Needs no compiler, no emulator and no kernel tree, and never runs what it reads: every
file is untrusted, and ends as an image or as one line that says what is wrong with it.

    contents.py   bytes of a file, decompressed, bounded     image.py      one module
    object.py     sections, symbols, relocations             kernel.py     the kernel that they are for
    exports.py    __ksymtab* as the module loader reads it   moduleset.py  who provides what, load sequence
    lines.py      source file and line of a place in code    inspect.py    findings, verdict, JSON
    lineprogram.py, dwarf.py   the debug information that says it
    dwarfinfo.py  its entries, by name                       inlined.py    where functions were inlined
    references.py what stays and refers to init memory       lifetimes.py  whether that does harm
    kept.py       what init is seen to leave behind of it
    functions.py  functions and where they are               reach.py      what init or exit code alone reaches
    layout.py     where the bytes are                        types.py      structs: structs.py, btf.py, dwarftypes.py
    code/         what code does                             rules/        what it should do
    tree/         what init and exit call                    places.py     names of places in code
    folder.py     all of a folder's modules

"""
