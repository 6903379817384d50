/*
 * What somebody writes by hand to let each allocation of a load fail once: a plain loop in one guest, /init of an
 * emulator. `inv bench` holds `inject` against it. Of each point it looks at errno and at what is left, and that is all:
 * no next load, and the log is on the console. Built with -static; arguments come from the kernel's command line, behind "--": the modules in
 * the order in which they are loaded, of which the last one is swept.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), error = fd < 0 || write(fd, text, strlen(text)) < 0;

	close(fd);
	return error;
}

/* A sum over the names, in whatever order they come. */
static unsigned long names(const char *path)
{
	DIR *folder = opendir(path);
	unsigned long sum = 0;

	for (struct dirent *entry; folder && (entry = readdir(folder));) {
		unsigned long hash = 5381;

		for (const char *c = entry->d_name; *c; c++)
			hash = hash * 33 + *c;
		sum += hash;
	}
	if (folder)
		closedir(folder);
	return sum;
}

static unsigned long left_behind(void)
{
	return names("/sys/kernel/slab") + names("/sys/kernel/debug") + names("/sys/kernel/debug/kvm") +
	       names("/sys/class/misc") + names("/sys/module") + names("/dev");
}

static long load(const char *name)
{
	char path[300];
	long result;
	int fd;

	snprintf(path, sizeof(path), "/modules/%s.ko", name);
	fd = open(path, O_RDONLY);
	result = syscall(SYS_finit_module, fd, "", 0);
	close(fd);
	return result;
}

int main(int argc, char **argv)
{
	int line, nth, points = 0, wrong = 0;
	char number[16], module[64];
	unsigned long before;
	const char *file = argv[argc - 1];

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("none", "/proc", "proc", 0, NULL);
	mount("none", "/sys", "sysfs", 0, NULL);
	mount("none", "/sys/kernel/debug", "debugfs", 0, NULL);
	mount("none", "/dev", "devtmpfs", 0, NULL);
	line = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_NONBLOCK);
	put("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	put("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	put("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	put("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	for (int i = 1; i < argc - 1; i++)
		load(argv[i]);
	snprintf(module, sizeof(module), "%s", file);
	for (char *c = module; *c; c++)
		*c = *c == '-' ? '_' : *c;
	nth = open("/proc/thread-self/fail-nth", O_RDWR);
	before = left_behind();
	dprintf(line, "begin\n");
	for (;;) {
		long result;
		int error, bytes;

		snprintf(number, sizeof(number), "%d", points + 1);
		if (pwrite(nth, number, strlen(number), 0) < 0)
			break;
		result = load(file);
		error = errno;
		bytes = pread(nth, number, sizeof(number) - 1, 0);
		number[bytes > 0 ? bytes : 0] = 0;
		pwrite(nth, "0", 1, 0);
		if (!result)
			syscall(SYS_delete_module, module, O_NONBLOCK);
		if (atoi(number) > 0)
			break;
		points++;
		wrong += (result && error != ENOMEM) || left_behind() != before;
	}
	dprintf(line, "end %d %d\n", points, wrong);
	sleep(1);
	reboot(RB_POWER_OFF);
	return 0;
}
