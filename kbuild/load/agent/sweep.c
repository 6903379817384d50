// SPDX-License-Identifier: GPL-2.0-only
/* Loads in which one allocation fails, one after the other, as long as each leaves everything as it was. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTS 5			/* of a point */
#define MAX_POINTS 1000		/* of one command */

struct sweep {
	struct answer *whole;
	struct command load, unload, state, none;
};

typedef int verb(const struct command *command, struct answer *answer);

/* One thing that is done for a point, with a result of its own. */
static int part(const struct sweep *sweep, uint64_t number, verb *run, const struct command *command,
		struct answer *answer)
{
	struct line line;
	uint64_t start;
	int error;

	answer->result = &line;
	kmsg_part(answer->id, number);
	line_begin(&line, "result");
	line_number(&line, "id", answer->id);
	line_number(&line, "part", number);
	start = host_us();
	error = run(command, answer);
	line_number(&line, "us", host_us() - start);
	line_number(&line, "errno", error);
	line_send(&line, sweep->whole->fd);
	return error;
}

/* Returns whether all is as it was, and the next one can follow. */
static bool point(const struct sweep *sweep, uint64_t number, uint64_t parts)
{
	struct answer answer = *sweep->whole;
	char nth[24];
	int error;

	verb_rearm(&sweep->none, &answer);
	snprintf(nth, sizeof(nth), "%llu", (unsigned long long)number);
	answer.fail_nth = nth;
	error = part(sweep, parts + 1, verb_load, &sweep->load, &answer);
	answer.fail_nth = NULL;
	if (error && error != ENOMEM)
		return false;
	if (!error && part(sweep, parts + 2, verb_unload, &sweep->unload, &answer))
		return false;
	if (part(sweep, parts + 3, verb_state, &sweep->state, &answer) || !answer.same)
		return false;
	return !part(sweep, parts + 4, verb_load, &sweep->load, &answer) &&
	       !part(sweep, parts + 5, verb_unload, &sweep->unload, &answer);
}

const char *check_sweep(const struct command *command)
{
	char *end;
	unsigned long first = strtoul(command->argv[1], &end, 10), last;

	if (*end || !first || first > INT32_MAX)
		return "not a number from 1 to 2147483647";
	last = strtoul(command->argv[2], &end, 10);
	if (*end || last < first || last >= first + MAX_POINTS)
		return "not a number from the first on, at most 1000 of them";
	return check_fault_target(command->argv[0], command->argv[4]);
}

int verb_sweep(const struct command *command, struct answer *answer)
{
	static char name[COMMAND_BYTES];
	struct sweep sweep = {
		.whole = answer,
		.load = { .argc = command->argc - 4 },
		.unload = { .argc = 1, .argv = { name } },
		.state = { .argc = 1, .argv = { command->argv[3] } },
	};
	uint64_t first = strtoul(command->argv[1], NULL, 10), last = strtoul(command->argv[2], NULL, 10);
	int error = fault_set_up(command->argv[0], answer);

	if (error)
		return error;
	memcpy(sweep.load.argv, command->argv + 4, sizeof(sweep.load.argv[0]) * sweep.load.argc);
	module_name(command->argv[4], name, sizeof(name));
	for (uint64_t number = first; number <= last; number++)
		if (!point(&sweep, number, (number - first) * PARTS))
			break;
	return 0;
}
