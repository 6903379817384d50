// PID 1 of the guests whose logs are kept here: does the steps of the kernel's command line (`steps=kvm,-kvm`: load, unload),
// each in a process of its own and between two marks, and powers off.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static void mark(int step, const char *what)
{
	char text[64];
	int fd = open("/dev/kmsg", O_WRONLY);
	int length = snprintf(text, sizeof(text), "kvm-kbuild: step %d %s", step, what);

	if (fd >= 0 && write(fd, text, length) == length)
		close(fd);
}

static void do_step(const char *step)
{
	char path[128];

	if (step[0] == '-')
		_exit(syscall(SYS_delete_module, step + 1, O_NONBLOCK) ? errno : 0);
	snprintf(path, sizeof(path), "/modules/%s.ko", step);
	_exit(syscall(SYS_finit_module, open(path, O_RDONLY), "", 0) ? errno : 0);
}

int main(void)
{
	char line[4096] = "";
	int number = 0, fd;

	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, 0);
	mount("sysfs", "/sys", "sysfs", 0, 0);
	mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
	klogctl(8, NULL, 8); // all levels on the console, which `quiet` kept short during boot
	fd = open("/proc/cmdline", O_RDONLY);
	read(fd, line, sizeof(line) - 1);
	char *steps = strstr(line, "steps=");
	if (steps)
		for (char *step = strtok(steps + 6, ", \n"); step; step = strtok(NULL, ", \n")) {
			mark(++number, "begin");
			pid_t child = fork();
			if (!child)
				do_step(step);
			waitpid(child, NULL, 0);
			mark(number, "end");
		}
	tcdrain(open("/dev/console", O_WRONLY | O_NOCTTY));
	reboot(RB_POWER_OFF);
	return 1;
}
