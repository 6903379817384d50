// SPDX-License-Identifier: GPL-2.0-only
/*
 * Programs of the kernel's own selftests: one is run, bounded in time, and what it said is sent.
 *
 * What its exit status means is the host side's to say (tools/testing/selftests/kselftest.h).
 */
#define _GNU_SOURCE		/* pipe2 */
#include "agent.h"
#include "items.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_SECONDS 3600
#define KEEP_BYTES 16384	/* of the beginning, and as much of the end: an assertion that fails is the last word */
#define NOT_STARTED 127

struct output {
	char first[KEEP_BYTES], last[KEEP_BYTES];
	size_t total;
};

static void keep(struct output *said, const char *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++, said->total++)
		if (said->total < KEEP_BYTES)
			said->first[said->total] = bytes[i];
		else
			said->last[said->total % KEEP_BYTES] = bytes[i];
}

static char byte_at(const struct output *said, size_t at)
{
	return at < KEEP_BYTES ? said->first[at] : said->last[at % KEEP_BYTES];
}

/* As items: its lines, a long one in pieces. Returns how many bytes in the middle are left out. */
static size_t send_output(const struct output *said, const struct answer *answer)
{
	size_t cut = said->total > 2 * KEEP_BYTES ? said->total - 2 * KEEP_BYTES : 0;
	struct items items = { 0 };
	char text[500];
	size_t used = 0;

	for (size_t at = 0; at < said->total; at++) {
		char byte;

		if (cut && at == KEEP_BYTES) {
			items_add(&items, "output", "[cut here]");
			at += cut;
		}
		byte = byte_at(said, at);
		if (byte != '\n' && byte)
			text[used++] = byte;
		if (byte == '\n' || used == sizeof(text) - 1 || at == said->total - 1) {
			text[used] = 0;
			items_add(&items, "output", text);
			used = 0;
		}
	}
	items_send(&items, answer);
	return cut;
}

static _Noreturn void become(const char *path, int out)
{
	struct rlimit none = { 0, 0 };
	/* The path is told as the name: KVM's tests load their own file into the virtual machine. */
	char *const argv[] = { (char *)path, NULL }, *const environment[] = { NULL };

	setpgid(0, 0);
	setrlimit(RLIMIT_CORE, &none);
	signal(SIGPIPE, SIG_DFL);
	dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
	dup2(out, STDOUT_FILENO);
	dup2(out, STDERR_FILENO);
	execve(path, argv, environment);
	dprintf(STDOUT_FILENO, "%s: %s\n", path, strerror(errno));
	_exit(NOT_STARTED);
}

/* Until it has ended, or time is up. Its output may outlive it, in a process that it started. */
static bool follow(pid_t pid, int from, uint64_t until, struct output *said)
{
	int ended = syscall(SYS_pidfd_open, pid, 0);
	struct pollfd polls[] = { { .fd = from, .events = POLLIN }, { .fd = ended, .events = POLLIN } };
	char bytes[4096];

	for (;;) {
		uint64_t now = host_us();
		ssize_t n;

		if (now >= until)
			break;
		if (poll(polls, 2, (until - now) / 1000 + 1) < 0)
			continue;
		if (polls[0].revents) {
			n = read(from, bytes, sizeof(bytes));
			if (n > 0)
				keep(said, bytes, n);
			else
				polls[0].fd = -1;	/* nobody writes any more */
		} else if (polls[1].revents) {
			close(ended);
			return true;
		}
	}
	close(ended);
	return false;
}

const char *check_selftest(const struct command *command)
{
	unsigned long seconds = strtoul(command->argv[1], NULL, 10);

	if (strchr(command->argv[0], '/') || command->argv[0][0] == '.')
		return "not a plain name";
	if (strspn(command->argv[1], "0123456789") != strlen(command->argv[1]) || !seconds || seconds > MAX_SECONDS)
		return "no number of seconds";
	return NULL;
}

int verb_selftest(const struct command *command, struct answer *answer)
{
	uint64_t until = host_us() + strtoul(command->argv[1], NULL, 10) * 1000000;
	static struct output said;
	char path[COMMAND_BYTES + 256];
	int fds[2], status = 0;
	bool in_time;
	pid_t pid;

	snprintf(path, sizeof(path), "%s/%s", answer->modules, command->argv[0]);
	/* It came with the modules, as a file like any other. */
	if (chmod(path, 0755) || pipe2(fds, O_CLOEXEC))
		return errno;
	/* What it leaves behind, too, has to be gone before the module can be unused. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	pid = fork();
	if (pid < 0)
		return errno;
	if (pid == 0)
		become(path, fds[1]);
	setpgid(pid, pid);
	close(fds[1]);
	in_time = follow(pid, fds[0], until, &said);
	close(fds[0]);
	kill(-pid, SIGKILL);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	while (waitpid(-1, NULL, 0) > 0 || errno == EINTR)
		;
	line_number(answer->result, "cut", send_output(&said, answer));
	if (!in_time)
		return ETIMEDOUT;
	if (WIFSIGNALED(status))
		line_number(answer->result, "signal", WTERMSIG(status));
	else
		line_number(answer->result, "status", WEXITSTATUS(status));
	return 0;
}
