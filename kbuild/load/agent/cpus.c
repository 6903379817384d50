// SPDX-License-Identifier: GPL-2.0-only
/* Processors: taken away and given back, chosen for a command, and several at work at once. */
#define _GNU_SOURCE		/* sched_setaffinity */
#include "agent.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_PARTS 4
#define MAX_CPU 1023

static bool is_cpu(const char *text)
{
	return *text && strspn(text, "0123456789") == strlen(text) && strlen(text) <= 4 && atoi(text) <= MAX_CPU;
}

const char *check_cpu(const struct command *command)
{
	if (strcmp(command->argv[0], "online") && strcmp(command->argv[0], "offline"))
		return "neither online nor offline";
	return is_cpu(command->argv[1]) ? NULL : "not the number of a processor";
}

/* drivers/base/cpu.c: the number of CPU hotplug's callback that failed comes back as write(2)'s errno. */
int verb_cpu(const struct command *command, struct answer *answer)
{
	char path[64];

	(void)answer;
	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%s/online", command->argv[1]);
	return host_write_file(path, strcmp(command->argv[0], "online") ? "0" : "1");
}

static int run_on(const char *cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(atoi(cpu), &set);
	return sched_setaffinity(0, sizeof(set), &set) ? errno : 0;
}

/* "CPU VERB ARG…" without its first word. */
static struct command behind_cpu(const struct command *command)
{
	struct command inner = { .id = command->id, .verb = command->argv[1], .argc = command->argc - 2 };

	memcpy(inner.argv, command->argv + 2, sizeof(inner.argv[0]) * inner.argc);
	return inner;
}

const char *check_on(const struct command *command)
{
	struct command inner = behind_cpu(command);

	return is_cpu(command->argv[0]) ? check_inner(&inner) : "not the number of a processor";
}

int verb_on(const struct command *command, struct answer *answer)
{
	struct command inner = behind_cpu(command);
	int error = run_on(command->argv[0]);

	if (error)
		line_string(answer->result, "where", "sched_setaffinity");
	return error ?: run_inner(&inner, answer);
}

/* "CPU VERB ARG… ; CPU VERB ARG…": how many, or 0 for none that could be meant. */
static int split(const struct command *command, struct command parts[MAX_PARTS])
{
	int count = 0, start = 0;

	for (int i = 0; i <= command->argc; i++) {
		if (i < command->argc && strcmp(command->argv[i], ";"))
			continue;
		if (count == MAX_PARTS || i - start < 2)
			return 0;
		parts[count].id = command->id;
		parts[count].argc = i - start;
		memcpy(parts[count++].argv, command->argv + start, sizeof(command->argv[0]) * (i - start));
		start = i + 1;
	}
	return count < 2 ? 0 : count;
}

const char *check_together(const struct command *command)
{
	struct command parts[MAX_PARTS];
	int count = split(command, parts);

	for (int i = 0; i < count; i++) {
		const char *why = check_on(&parts[i]);

		if (why)
			return why;
	}
	return count ? NULL : "not two to four commands, each with its processor, parted by ;";
}

struct part {
	int error;
	uint64_t start, end;
};

struct meeting {
	int wanted, there;
	struct part parts[MAX_PARTS];
};

/* Spins, for a sleeping process would be woken later than one that runs. */
static void meet(struct meeting *meeting)
{
	__atomic_add_fetch(&meeting->there, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&meeting->there, __ATOMIC_SEQ_CST) < meeting->wanted)
		sched_yield();
}

static _Noreturn void take_part(const struct command *command, struct meeting *meeting, int index,
				const struct answer *answer)
{
	struct command inner = behind_cpu(command);
	struct part *part = &meeting->parts[index];
	struct answer own = *answer;
	struct line unused;	/* only errno and times are told */
	int error = run_on(command->argv[0]);

	line_begin(&unused, "result");
	own.result = &unused;
	meet(meeting);
	part->start = host_us();
	part->error = error ?: run_inner(&inner, &own);
	part->end = host_us();
	_exit(0);
}

int verb_together(const struct command *command, struct answer *answer)
{
	struct command parts[MAX_PARTS];
	int count = split(command, parts), status, signal = 0;
	uint64_t first = UINT64_MAX;
	struct meeting *meeting;
	pid_t pids[MAX_PARTS];

	meeting = mmap(NULL, sizeof(*meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (meeting == MAP_FAILED)
		return errno;
	meeting->wanted = count;
	for (int i = 0; i < count; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			_exit(1);	/* those that wait for it are the agent's to end: there is no answer */
		if (!pids[i])
			take_part(&parts[i], meeting, i, answer);
	}
	for (int i = 0; i < count; i++)
		if (waitpid(pids[i], &status, 0) == pids[i] && WIFSIGNALED(status))
			signal = WTERMSIG(status);
	/* An oops kills the process that met it: the command has died of that. */
	if (signal)
		kill(getpid(), signal);
	for (int i = 0; i < count; i++)
		first = meeting->parts[i].start < first ? meeting->parts[i].start : first;
	line_list_begin(answer->result, "parts");
	for (int i = 0; i < count; i++) {
		const struct part *part = &meeting->parts[i];
		char text[80];

		snprintf(text, sizeof(text), "%d %llu %llu", part->error,
			 (unsigned long long)(part->start - first),
			 (unsigned long long)(part->end - part->start));
		line_list_add(answer->result, text);
	}
	line_list_end(answer->result);
	return 0;
}
