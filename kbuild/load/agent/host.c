// SPDX-License-Identifier: GPL-2.0-only
/* What the agent runs on: its file systems, its processor, its clock. */
#include "agent.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define CPUID1_ECX_VMX (1u << 5)
#define CPUID_EXT1_ECX_SVM (1u << 2)
#define CPUID_SVM_EDX_NPT (1u << 0)

int host_write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;
	ssize_t n;

	if (fd < 0)
		return errno;
	n = write(fd, text, strlen(text));
	if (n != (ssize_t)strlen(text))
		error = n < 0 ? errno : EIO;
	close(fd);
	return error;
}

/* What cannot be mounted shows later: as `absent` in the state, or as ENOENT of a verb. */
void host_set_up(void)
{
	static const struct { const char *type, *path; } mounts[] = {
		{ "proc", "/proc" },
		{ "sysfs", "/sys" },
		{ "devtmpfs", "/dev" },
		{ "debugfs", "/sys/kernel/debug" },
		{ "tracefs", "/sys/kernel/tracing" },
	};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		mkdir(mounts[i].path, 0755);
		mount(mounts[i].type, mounts[i].path, mounts[i].type, 0, NULL);
	}
	/*
	 * Otherwise the kernel drops all but ten step marks in five seconds.
	 * EINVAL: the command line has set it and it can not be changed any more.
	 */
	host_write_file("/proc/sys/kernel/printk_devkmsg", "on\n");
}

uint64_t host_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int host_read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t used = 0;
	ssize_t n = 0;

	if (fd < 0)
		return -errno;
	while (used < size - 1) {
		n = read(fd, buffer + used, size - 1 - used);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		used += n;
	}
	if (n < 0)
		n = -errno;
	close(fd);
	buffer[used] = 0;
	return n < 0 ? (int)n : (int)used;
}

/* What a line of /proc/cpuinfo says, between blanks: "vmx flags : vnmi ept unrestricted_guest". */
static void read_vmx_flags(char *flags, size_t size)
{
	FILE *file = fopen("/proc/cpuinfo", "re");
	char *line = NULL;
	size_t room = 0;
	ssize_t length;

	flags[0] = 0;
	if (!file)
		return;
	while ((length = getline(&line, &room, file)) > 0) {
		char *colon = strchr(line, ':');

		if (strncmp(line, "vmx flags", 9) || !colon)
			continue;
		line[length - 1] = ' ';
		snprintf(flags, size, "%s", colon + 1);
		break;
	}
	free(line);
	fclose(file);
}

static void add_flags(struct line *line)
{
	unsigned int eax, ebx, ecx, edx;
	char vmx_flags[1024];

	if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & CPUID1_ECX_VMX)) {
		line_list_add(line, "vmx");
		/* EPT is told by MSRs only, which user space cannot read: ask what the kernel read there. */
		read_vmx_flags(vmx_flags, sizeof(vmx_flags));
		if (strstr(vmx_flags, " ept "))
			line_list_add(line, "ept");
		if (strstr(vmx_flags, " unrestricted_guest "))
			line_list_add(line, "unrestricted-guest");
	}
	if (__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) && (ecx & CPUID_EXT1_ECX_SVM)) {
		line_list_add(line, "svm");
		if (__get_cpuid(0x8000000a, &eax, &ebx, &ecx, &edx) && (edx & CPUID_SVM_EDX_NPT))
			line_list_add(line, "npt");
	}
}

void host_hello(struct line *line)
{
	unsigned int eax, vendor[3] = { 0, 0, 0 };
	struct utsname name;

	uname(&name);
	/* "GenuineIntel" is in EBX, EDX, ECX, in this order. */
	__get_cpuid(0, &eax, &vendor[0], &vendor[2], &vendor[1]);
	line_begin(line, "hello");
	line_number(line, "protocol", PROTOCOL_VERSION);
	line_string(line, "kernel", name.release);
	line_bytes(line, "vendor", (const char *)vendor, sizeof(vendor));
	line_list_begin(line, "flags");
	add_flags(line);
	line_list_end(line);
}
