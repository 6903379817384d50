// SPDX-License-Identifier: GPL-2.0-only
/* Who uses a module: those that hold it, and a process of our own that does so on purpose. */
#define _GNU_SOURCE		/* pipe2 */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HOLDER "kvm-hold"
#define GUEST "guest"
#define STOP_MS 10000		/* a guest that is told to stop answers in a thousandth of that */

static bool is_of_kvm(const char *target)
{
	return !strcmp(target, "/dev/kvm") || !strncmp(target, "anon_inode:kvm-", 15);
}

static bool is_pid(const char *name)
{
	return *name >= '1' && *name <= '9';
}

/* "57 3 /dev/kvm qemu-system-x86": process, descriptor, what it is, and the program's name. */
static bool report_files(const char *pid, const char *program, struct line *result)
{
	char path[300], file[600], target[64], item[256];
	struct dirent *entry;
	bool room = true;
	DIR *folder;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	folder = opendir(path);
	while (folder && room && (entry = readdir(folder))) {
		ssize_t length;

		snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
		length = readlink(file, target, sizeof(target) - 1);
		target[length < 0 ? 0 : length] = 0;
		if (!is_of_kvm(target))
			continue;
		snprintf(item, sizeof(item), "%.20s %.20s %s %s", pid, entry->d_name, target, program);
		room = line_list_add(result, item);
	}
	if (folder)
		closedir(folder);
	return room;
}

void report_users(const char *name, struct line *result)
{
	char path[COMMAND_BYTES + 64], text[32];
	struct dirent *entry;
	DIR *folder;

	snprintf(path, sizeof(path), "/sys/module/%s/refcnt", name);
	if (host_read_file(path, text, sizeof(text)) > 0)
		line_number(result, "refs", strtoull(text, NULL, 10));
	snprintf(path, sizeof(path), "/sys/module/%s/holders", name);
	folder = opendir(path);
	if (folder) {
		line_list_begin(result, "holders");
		while ((entry = readdir(folder)))
			if (entry->d_name[0] != '.' && !line_list_add(result, entry->d_name))
				break;
		line_list_end(result);
		closedir(folder);
	}
	folder = opendir("/proc");
	if (!folder)
		return;
	line_list_begin(result, "open");
	while ((entry = readdir(folder))) {
		snprintf(path, sizeof(path), "/proc/%.20s/comm", entry->d_name);
		if (!is_pid(entry->d_name) || host_read_file(path, text, sizeof(text)) < 0)
			continue;
		text[strcspn(text, "\n")] = 0;
		if (!report_files(entry->d_name, text, result))
			break;
	}
	line_list_end(result);
	closedir(folder);
}

/* Opens what is asked for and nothing besides. Returns the descriptor or a negative errno. */
static int open_one(const char *what)
{
	int device = open("/dev/kvm", O_RDWR | O_CLOEXEC), machine, vcpu;

	if (device < 0)
		return -errno;
	if (!strcmp(what, "kvm-device"))
		return device;
	machine = ioctl(device, KVM_CREATE_VM, 0);
	if (machine < 0)
		return -errno;
	close(device);
	if (!strcmp(what, "vm"))
		return machine;
	vcpu = ioctl(machine, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return -errno;
	close(machine);
	return vcpu;
}

const char *check_hold(const struct command *command)
{
	static const char *const known[] = { "kvm-device", "vm", "vcpu", GUEST };

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(command->argv[0], known[i]))
			return NULL;
	return "nothing that can be held";
}

/* The process lives until it is released, or the agent is gone: then the pipe has an end. */
static _Noreturn void hold(const char *what, const struct answer *answer, int told)
{
	int error;
	char byte;

	prctl(PR_SET_NAME, HOLDER);
	close(answer->fd);
	close(shared->alive[1]);
	if (shared->guest) {
		shared->guest_error = run_counting(told);
		_exit(0);
	}
	error = open_one(what);
	error = error < 0 ? -error : 0;
	if (write(told, &error, sizeof(error)) != sizeof(error) || error)
		_exit(0);
	close(told);
	while (read(shared->alive[0], &byte, 1) < 0 && errno == EINTR)
		;
	_exit(0);
}

int verb_hold(const struct command *command, struct answer *answer)
{
	int told[2], error;
	pid_t pid;

	if (shared->holder)
		return EBUSY;
	shared->guest = !strcmp(command->argv[0], GUEST);
	shared->stop = false;
	shared->guest_error = EIO;	/* as long as it does not say otherwise: it was killed */
	shared->rounds = 0;
	if (pipe2(told, O_CLOEXEC))
		return errno;
	pid = fork();
	if (pid < 0)
		return errno;
	if (!pid) {
		close(told[0]);
		hold(command->argv[0], answer, told[1]);
	}
	close(told[1]);
	if (read(told[0], &error, sizeof(error)) != sizeof(error))
		return EIO;
	if (!error)
		shared->holder = pid;
	return error;
}

/* It has to answer once more: a guest that stands still was not harmed by nothing. One may have ended by itself. */
static int stop_guest(pid_t pid, struct pollfd *ended, struct answer *answer)
{
	bool late;

	__atomic_store_n(&shared->stop, true, __ATOMIC_SEQ_CST);
	late = ended->fd >= 0 && poll(ended, 1, STOP_MS) == 0;
	if (late) {
		kill(pid, SIGKILL);
		while (poll(ended, 1, -1) < 0)
			;
	}
	line_number(answer->result, "output", shared->rounds);
	return late ? ETIMEDOUT : shared->guest_error;
}

int verb_release(const struct command *command, struct answer *answer)
{
	struct pollfd ended = { .events = POLLIN };
	pid_t pid = shared->holder;

	(void)command;
	if (!pid)
		return ESRCH;
	ended.fd = syscall(SYS_pidfd_open, pid, 0);
	if (ended.fd < 0 && (errno != ESRCH || !shared->guest))
		return errno;
	shared->holder = 0;
	if (shared->guest)
		return stop_guest(pid, &ended, answer);
	if (kill(pid, SIGKILL))
		return errno;
	/* It has closed its files when it can be waited for: kernel/exit.c, do_exit(). */
	while (poll(&ended, 1, -1) < 0)
		;
	return 0;
}
