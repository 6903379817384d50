// SPDX-License-Identifier: GPL-2.0-only
/* Loading, unloading, parameters. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/syscall.h>
#include <unistd.h>

/* <sys/klog.h> has no names for them. */
#define SYSLOG_ACTION_CONSOLE_LEVEL 8
#define LOUDEST 8

/* "a=1 b=2"; a value with a blank is quoted, as kernel/params.c, next_arg() reads it. */
static void join_parameters(const struct command *command, char *text, size_t size)
{
	size_t used = 0;

	text[0] = 0;
	for (int i = 1; i < command->argc; i++) {
		const char *quote = strchr(command->argv[i], ' ') ? "\"" : "";

		used += snprintf(text + used, size - used, "%s%s%s%s", i > 1 ? " " : "", quote,
				 command->argv[i], quote);
	}
}

void module_name(const char *file, char *name, size_t size)
{
	snprintf(name, size, "%.*s", (int)strcspn(file, "."), file);
	for (; *name; name++)
		if (*name == '-')
			*name = '_';
}

/* "0xffffffffa0000000": of a section of a module that was just loaded. */
static void report_section(const char *file, const char *section, const char *key, struct line *result)
{
	char name[256], path[512], address[32];

	module_name(file, name, sizeof(name));
	snprintf(path, sizeof(path), "/sys/module/%s/sections/%s", name, section);
	if (host_read_file(path, address, sizeof(address)) > 0)
		line_number(result, key, strtoull(address, NULL, 16));
}

int verb_load(const struct command *command, struct answer *answer)
{
	char path[COMMAND_BYTES + 256], parameters[COMMAND_BYTES * 2];
	int fd, error = 0;

	snprintf(path, sizeof(path), "%s/%s", answer->modules, command->argv[0]);
	join_parameters(command, parameters, sizeof(parameters));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	if (fault_syscall(answer, SYS_finit_module, fd, (long)parameters, 0))
		error = errno;
	close(fd);
	if (!error) {
		report_section(command->argv[0], ".text", "text", answer->result);
		report_section(command->argv[0], ".init.text", "init_text", answer->result);
	}
	return error;
}

int verb_unload(const struct command *command, struct answer *answer)
{
	int error;

	if (!fault_syscall(answer, SYS_delete_module, (long)command->argv[0], O_NONBLOCK, 0))
		return 0;
	error = errno;
	if (error == EWOULDBLOCK)
		report_users(command->argv[0], answer->result);
	return error;
}

int verb_param(const struct command *command, struct answer *answer)
{
	char path[2 * COMMAND_BYTES], value[4096];
	int length;

	snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", command->argv[0], command->argv[1]);
	length = host_read_file(path, value, sizeof(value));
	if (length < 0)
		return -length;
	if (length && value[length - 1] == '\n')
		length--;
	return line_bytes(answer->result, "value", value, length) ? EMSGSIZE : 0;
}

/* kernel/panic.c, clear_warn_once: what warns once a boot may warn again. */
int verb_rearm(const struct command *command, struct answer *answer)
{
	(void)command;
	(void)answer;
	return host_write_file("/sys/kernel/debug/clear_warn_once", "1");
}

/* kernel/printk/printk.c, do_syslog(): from now on all that is said is on the console when printk() returns. */
int verb_loud(const struct command *command, struct answer *answer)
{
	(void)command;
	/* Others have a console to look at. */
	if (!answer->emulated)
		return EPERM;
	return klogctl(SYSLOG_ACTION_CONSOLE_LEVEL, NULL, LOUDEST) < 0 ? errno : 0;
}
