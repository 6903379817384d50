// SPDX-License-Identifier: GPL-2.0-only
/* Suspend to RAM: as far as /sys/power/pm_test says, or for real, until the machine's clock wakes it. */
#include "agent.h"

#include <errno.h>
#include <string.h>

#define PM_TEST "/sys/power/pm_test"
#define REAL "memory"		/* no level of pm_test, which then says none */

static const char *const levels[] = { "freezer", "devices", "platform", "processors", "core", REAL };

const char *check_suspend(const struct command *command)
{
	for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++)
		if (!strcmp(command->argv[0], levels[i]))
			return NULL;
	return "no level of suspend";
}

/* What this kernel or machine does not have is told by its file. */
static int prepare(const char *path, const char *value, struct answer *answer)
{
	int error = host_write_file(path, value);

	if (error)
		line_string(answer->result, "where", path);
	return error;
}

int verb_suspend(const struct command *command, struct answer *answer)
{
	bool real = !strcmp(command->argv[0], REAL);
	int error;

	if (!answer->emulated)
		return EPERM;
	/* kernel/power/suspend.c, suspend_test(): waits for five seconds by default. */
	host_write_file("/sys/module/suspend/parameters/pm_test_delay", "0");
	/* Sleep that only idles takes no processor away and calls no syscore_ops: kernel/power/suspend.c, suspend_enter(). */
	error = prepare("/sys/power/mem_sleep", "deep", answer) ?:
		prepare(PM_TEST, real ? "none" : command->argv[0], answer);
	if (!error && real) {
		host_write_file("/sys/class/rtc/rtc0/wakealarm", "0");
		error = prepare("/sys/class/rtc/rtc0/wakealarm", "+2", answer);
	}
	if (error)
		return error;
	error = host_write_file("/sys/power/state", "mem");
	host_write_file(PM_TEST, "none");
	return error;
}
