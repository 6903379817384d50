#!/bin/sh
# Runs as root on a test host: `host.sh VERB ARGUMENT…`. What it prints is lines KEY=VALUE, which facts.py reads.
# Any POSIX shell will do. docs/ssh.md says what each verb is for.
set -u
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
umask 077
dir=/var/lib/kvm-kbuild
kvm='kvm_intel kvm_amd kvm irqbypass'
grub=/boot/grub
# Of ours there: a folder beside grub.cfg, which GRUB has found already, and an entry with that name in custom.cfg.
entry='kvm-kbuild'
begin="# $entry: begin" end="# $entry: end"
newline='
'

# Most of what is said is one line: a process for each would be hundreds, which a slow machine takes a minute for.
say() {
    case $2 in
        *"$newline"*) printf '%s=%s\n' "$1" "$(printf %s "$2" | tr '\n' ' ')" ;;
        *) printf '%s=%s\n' "$1" "$2" ;;
    esac
}

# A file's first line, in $line: empty where it cannot be read. Not of /proc/sys: a shell reads byte by byte, and a number
# there is given at once or not at all.
read_line() {
    line=''
    { IFS= read -r line <"$1"; } 2>/dev/null
    return 0
}
say_line() { read_line "$2" && say "$1" "$line"; }
content() { cat "$1" 2>/dev/null || true; }
boot() { content /proc/sys/kernel/random/boot_id; }
fail() { printf 'host.sh: %s\n' "$*" >&2; exit 1; }

cpus_off() {
    for file in /sys/devices/system/cpu/cpu*/online; do
        read_line "$file"
        file=${file%/online}
        if [ "$line" = 0 ]; then printf '%s\n' "${file##*/}"; fi
    done
}

# One line for each process that has a virtual machine, or /dev/kvm, open.
users() {
    find /proc/[0-9]*/fd \( -lname anon_inode:kvm-vm -o -lname /dev/kvm \) 2>/dev/null | while read -r link; do
        pid=${link#/proc/}
        pid=${pid%%/*}
        read_line "/proc/$pid/comm"
        case $(readlink "$link") in
            anon_inode:kvm-vm) say guest "$pid $line" ;;
            /dev/kvm) say opened "$pid $line" ;;
        esac
    done | sort -u
}

# Of the first CPU.
cpu() {
    sed -n 's/^vendor_id[[:space:]]*: /vendor=/p;s/^flags[[:space:]]*: /flags=/p;s/^vmx flags[[:space:]]*: /vmx_flags=/p;/^$/q' \
        /proc/cpuinfo
}

free_mb() { df -Pm "$1" 2>/dev/null | { read -r _ && read -r _ _ _ free _ && printf %s "$free"; }; }

# What tells a later boot's evidence from what was there before.
evidence_files() {
    for file in /sys/fs/pstore/dmesg-* /var/lib/systemd/pstore/*/dmesg* /var/lib/systemd/pstore/*/*/dmesg* \
        /var/lib/systemd/pstore/dmesg* /var/crash/*/dmesg*; do
        if [ -f "$file" ]; then sha256sum "$file" | sed 's/\([0-9a-f]*\)[ *]*\(.*\)/\2:\1/'; fi
    done
}

modules() {
    loaded=''
    while read -r name _ refs holders _; do
        loaded="$loaded $name"
        case " $kvm " in *" $name "*) say module "$name $refs $holders" ;; esac
    done </proc/modules
    say loaded "${loaded# }"
    for name in $kvm; do
        [ -e "/sys/module/$name/initstate" ] || continue
        for file in /sys/module/"$name"/parameters/*; do
            if [ -r "$file" ]; then read_line "$file" && say parameter "$name ${file##*/} $line"; fi
        done
    done
}

facts() {
    say architecture "$(uname -m)"
    say release "$(content /proc/sys/kernel/osrelease)"
    say version "$(content /proc/sys/kernel/version)"
    say boot "$(boot)"
    # shellcheck disable=SC1091
    say system "$(. /etc/os-release 2>/dev/null; printf '%s %s' "${ID:-unknown}" "${VERSION_ID:-}")"
    cpu
    say cpus "$(getconf _NPROCESSORS_ONLN)"
    say cpus_off "$(cpus_off)"
    say tainted "$(content /proc/sys/kernel/tainted)"
    say memory_kb "$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)"
    say_line command_line /proc/cmdline
    say disabled "$(dmesg 2>/dev/null | grep -iE 'kvm.*disabled by bios|(VMX|SVM).*disabled.*BIOS' | head -n 1)"
    say lockdown "$(sed -n 's/.*\[\(.*\)\].*/\1/p' /sys/kernel/security/lockdown 2>/dev/null)"
    say secure_boot "$(od -An -tu1 -j4 -N1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c 2>/dev/null | tr -d ' ')"
    say_line signed_only /sys/module/module/parameters/sig_enforce
    say kexec "$(command -v kexec)"
    say kexec_disabled "$(content /proc/sys/kernel/kexec_load_disabled)"
    boot_loader
    root=$(findmnt -no SOURCE / 2>/dev/null)
    say root "$root"
    say root_partuuid "$(lsblk -no PARTUUID "$root" 2>/dev/null | head -n 1)"
    say free_mb "$(free_mb "${dir%/*}")"
    say_line pstore /sys/module/pstore/parameters/backend
    say panic "$(content /proc/sys/kernel/panic)"
    say printk_devkmsg "$(content /proc/sys/kernel/printk_devkmsg)"
    say hung_task_timeout_secs "$(content /proc/sys/kernel/hung_task_timeout_secs)"
    say_line kdump /sys/kernel/kexec_crash_loaded
    if [ -f "$0" ]; then say script "$(sha256sum <"$0" | cut -d' ' -f1)"; fi
    if [ -e "$dir/boots" ] && command -v flock >/dev/null && ! flock -n "$dir/boots" true; then say state stopping; fi
    say state "$(systemctl is-system-running 2>/dev/null)"
    say_line owner "$dir/owner"
    modules
    users
}

# Whether GRUB boots something once if it is told to: it reads custom.cfg, and forgets next_entry by writing it to the disk.
boot_loader() {
    if [ -r "$grub/grub.cfg" ]; then say grub "$grub"; else return 0; fi
    if grep -q '^[[:space:]]*source[[:space:]].*custom\.cfg' "$grub/grub.cfg"; then say grub_custom yes; fi
    if grep -q 'save_env.*next_entry' "$grub/grub.cfg"; then say grub_once yes; fi
    say grub_editenv "$(command -v grub-editenv)"
    if [ -s "$grub/grubenv" ]; then say grub_env yes; fi
    say grub_next "$(next_entry)"
    say boot_fs "$(findmnt -nvo FSTYPE -T "$grub" 2>/dev/null)"
    say boot_options "$(findmnt -nvo OPTIONS -T "$grub" 2>/dev/null)"
    say boot_device "$(lsblk -dno TYPE "$(findmnt -nvo SOURCE -T "$grub")" 2>/dev/null)"
    say boot_free_mb "$(free_mb "$grub")"
}

# Only of one that is there: grub-editenv makes what it is to read.
next_entry() { if [ -s "$grub/grubenv" ]; then grub-editenv "$grub/grubenv" list | sed -n 's/^next_entry=//p'; fi; }

# What was there stays to be put back, whatever happens to who asked for it; gives that.
take() {
    mkdir -p "$dir" || exit 1
    if [ -s "$dir/owner" ] && [ "$(cat "$dir/owner")" != "${2:-}" ]; then fail "the host is in use by $(cat "$dir/owner")"; fi
    if [ ! -s "$dir/saved" ]; then facts >"$dir/saved.new" && mv "$dir/saved.new" "$dir/saved" || exit 1; fi
    printf '%s\n' "$1" >"$dir/owner.new" && mv "$dir/owner.new" "$dir/owner" && sync && was
}

put() {
    rm -rf "$dir/files" && mkdir -p "$dir/files" && tar -x -f - -C "$dir/files" && sync
}

# Takes a module out, with what it was loaded with on record.
take_out() {
    [ -e "/sys/module/$1/initstate" ] || return 0
    rmmod "$1" 2>/dev/null || return 1
    if ! grep -qxF "$1" "$dir/taken_out" 2>/dev/null; then printf '%s\n' "$1" >>"$dir/taken_out"; fi
}

# The modules under test, by the kernel's names: those that need others come last.
under_test() {
    for file in "$dir"/files/modules/*.ko; do
        file=${file##*/}
        if [ "$file" != '*.ko' ]; then printf '%s\n' "${file%.ko}"; fi
    done | tr - _
}

# The host as an order finds it: none of the modules under test is loaded, and each step's mark comes to its log.
ready() {
    names="$kvm $(under_test)"
    # As often as one of them may hold the next one.
    for _ in 1 2 3 4; do
        for name in $names; do take_out "$name"; done
    done
    for name in $names; do
        if [ -e "/sys/module/$name/initstate" ]; then fail "$(rmmod "$name" 2>&1)"; fi
    done
    settings "$1"
    note_evidence
}

settings() {
    echo on >/proc/sys/kernel/printk_devkmsg 2>/dev/null
    echo "$1" >/proc/sys/kernel/hung_task_timeout_secs 2>/dev/null
    mount_it debugfs /sys/kernel/debug
    mount_it tracefs /sys/kernel/tracing
}

# Mounts what is not there, with that on record: after a boot it is not ours that is there.
mount_it() {
    mountpoint -q "$2" && return 0
    if mount -t "$1" "$1" "$2" 2>/dev/null; then printf '%s %s\n' "$(boot)" "$2" >>"$dir/mounted"; fi
}

mark() { printf '<0>%s\n' "$1" >/dev/kmsg; }

# Who has asked for a boot may be gone before it begins: until then facts say that it is coming.
about_to_boot() { exec 9>"$dir/boots" && flock 9; }

# The new kernel takes over from here when the host has shut down in order.
boot_kexec() {
    about_to_boot
    note_evidence
    initrd=/boot/initrd.img-$1
    shift
    [ -e "$initrd" ] && set -- --initrd="$initrd" "$@"
    # By the one system call or the other: a locked down kernel takes the second only, and that one not everywhere.
    said=$(kexec -c -l "$dir/files/kernel" "$@" 2>&1) || said="$said; $(kexec -s -l "$dir/files/kernel" "$@" 2>&1)" ||
        fail "kexec: $said"
    sync
    if [ -d /run/systemd/system ]; then systemctl --no-block kexec; else kexec -e; fi
}

# Words as GRUB takes them, each as it is.
quoted() {
    for word in "$@"; do printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")"; done
}

# The new kernel is what GRUB boots once, and then forgets: whatever resets the machine later brings its own kernel.
# For where kexec does not work.
boot_install() {
    about_to_boot
    note_evidence
    [ -r "$grub/grub.cfg" ] || fail "there is no $grub/grub.cfg under this kernel"
    uninstall || fail "$grub: what an earlier boot needed cannot be taken away"
    release=$1
    shift
    { mkdir -p "$grub/$entry" && cp "$dir/files/kernel" "$grub/$entry/kernel" && add_initrd "/boot/initrd.img-$release" &&
        add_entry "$@" && sync && grub-editenv "$grub/grubenv" set "next_entry=$entry"; } 2>"$dir/said" ||
        { uninstall; fail "$grub: $(tail -n 1 "$dir/said"): is its disk full, or read only?"; }
    reboot_now
}

# A second name takes no room.
add_initrd() {
    [ ! -e "$1" ] || ln -L "$1" "$grub/$entry/initrd" 2>/dev/null || cp "$1" "$grub/$entry/initrd"
}

# Where GRUB cannot read the kernel it would wait for somebody at its menu: it starts over instead.
# shellcheck disable=SC2016
add_entry() {
    file=$grub/custom.cfg
    if [ -e "$file" ]; then cp -p "$file" "$file.$entry"; else : >"$dir/custom_made" && : >"$file.$entry"; fi || return 1
    {
        if [ -n "$(tail -c 1 "$file" 2>/dev/null)" ]; then echo && : >"$dir/custom_cut"; fi
        printf '%s\n' "$begin" "menuentry '$entry' --id $entry {"
        printf '    %s\n' 'set kvm_kbuild="${config_directory}"' 'if [ -z "${kvm_kbuild}" ]; then set kvm_kbuild="${prefix}"; fi'
        load_by linux kernel "$@"
        if [ -e "$grub/$entry/initrd" ]; then load_by initrd initrd; fi
        printf '%s\n' '}' "$end"
    } >>"$file.$entry" && mv "$file.$entry" "$file"
}

# shellcheck disable=SC2016
load_by() {
    command=$1 name=$2
    shift 2
    printf '    %s "${kvm_kbuild}/%s/%s"%s\n' "$command" "$entry" "$name" "$(quoted "$@")"
    printf '    %s\n' 'if [ "$?" != 0 ]; then reboot; fi'
}

# Nothing of ours is left for GRUB. The folder goes last: as long as it is there, this is not over.
uninstall() {
    [ -d "$grub/$entry" ] || return 0
    case $(next_entry) in
        "$entry" | '') if [ -s "$grub/grubenv" ]; then grub-editenv "$grub/grubenv" unset next_entry || return 1; fi ;;
    esac
    file=$grub/custom.cfg
    rm -f "$file.$entry"
    if grep -qxF "$begin" "$file" 2>/dev/null; then
        rest=$(sed "/^$begin\$/,/^$end\$/d" "$file" && printf x) || return 1
        rest=${rest%x}
        # Its last line had no end.
        if [ -e "$dir/custom_cut" ]; then rest=${rest%?}; fi
        { cp -p "$file" "$file.$entry" && printf %s "$rest" >"$file.$entry" && mv "$file.$entry" "$file"; } || return 1
    fi
    if [ -e "$dir/custom_made" ] && [ ! -s "$file" ]; then rm -f "$file"; fi
    rm -rf "${grub:?}/$entry" "$dir/custom_made" "$dir/custom_cut" && sync
}

reboot_now() {
    sync
    if [ -d /run/systemd/system ]; then systemctl --no-block reboot; else reboot; fi
}

saved() { sed -n "s/^$1=//p" "$dir/saved" 2>/dev/null; }

# Who has lost its connection may still be at work, and keep /dev/kvm open.
end_ours() {
    for link in /proc/[0-9]*/exe; do
        case $(readlink "$link" 2>/dev/null) in "$dir"/files/*) pid=${link#/proc/} && kill -KILL "${pid%/exe}" 2>/dev/null ;; esac
    done
}

# A module as it was: with its parameters, of which some can only be given at load.
load_as_it_was() {
    [ -e "/sys/module/$1/initstate" ] || modprobe "$1" || return 1
    given=$(saved parameter | while read -r name parameter value; do
        file=/sys/module/$name/parameters/$parameter
        if [ "$name" != "$1" ] || [ ! -e "$file" ]; then continue; fi
        read_line "$file"
        if [ "$line" != "$value" ]; then { printf %s "$value" >"$file"; } 2>/dev/null || printf '%s\n' "$parameter=$value"; fi
    done)
    # shellcheck disable=SC2086
    if [ -n "$given" ] && rmmod "$1" 2>/dev/null; then modprobe "$1" $given; fi
}

# The boot loader, the modules, the CPUs and settings as they were when the host was taken. `stuck`: only a boot ends that.
restore() {
    uninstall || fail "$grub: what was put there for one boot could not be taken away"
    end_ours
    for name in $(cpus_off); do
        if ! saved cpus_off | grep -qw "$name"; then { echo 1 >"/sys/devices/system/cpu/$name/online"; } 2>/dev/null; fi
    done
    names="$kvm $(under_test)"
    for _ in 1 2 3 4; do
        for name in $names; do take_out "$name"; done
    done
    # Without files nothing of ours was ever loaded.
    for name in $(test ! -d "$dir/files" || echo "$names"); do
        if [ -e "/sys/module/$name/initstate" ]; then say stuck "$name"; fi
    done
    # What others need comes first. Only what was there before: others were loaded by an order.
    were_loaded=$(saved loaded)
    for name in irqbypass kvm kvm_intel kvm_amd $(content "$dir/taken_out"); do
        case " $were_loaded " in *" $name "*) load_as_it_was "$name" ;; esac
    done
    for name in printk_devkmsg hung_task_timeout_secs; do
        value=$(saved "$name")
        if [ -n "$value" ]; then printf '%s\n' "$value" >"/proc/sys/kernel/$name" 2>/dev/null; fi
    done
    content "$dir/mounted" | while read -r when place; do
        if [ "$when" = "$(boot)" ] && mountpoint -q "$place"; then umount "$place"; fi
    done
    rm -f "$dir/mounted"
}

was() { cat "$dir/saved"; }

give_back() { rm -rf "$dir"; }

# On the disk before anything happens: a list that a reset has cut would make all that is old look new.
note_evidence() {
    { evidence_files && echo end; } >"$dir/evidence.new" && mv "$dir/evidence.new" "$dir/evidence_before" && sync
}

# The last words of the kernel before this one: files that were not there when it began, wherever they lay.
evidence() {
    grep -qx end "$dir/evidence_before" || return 0
    evidence_files | while read -r file; do
        if grep -q ":${file##*:}\$" "$dir/evidence_before"; then continue; fi
        printf 'evidence=%s\n' "$file"
        # Of a long log its end counts.
        tail -c 1000000 "${file%:*}"
        printf '\n'
    done
}

verb=${1:-}
[ $# -gt 0 ] && shift
case $verb in
    facts | put | restore | give_back | evidence | boot_kexec | boot_install | take | ready | mark | was) "$verb" "$@" ;;
    reboot) reboot_now ;;
    log) dmesg -r | tail -n "${1:-400}" ;;
    agent) exec "$dir/files/agent" --stdio --modules "$dir/files/modules" ;;
    *) fail "'$verb' is no verb of mine" ;;
esac
