// SPDX-License-Identifier: GPL-2.0-only
/* Memory that nothing points to any more: the kernel looks for it itself (mm/kmemleak.c), when it is told to. */
#include "agent.h"
#include "items.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define KMEMLEAK "/sys/kernel/debug/kmemleak"
/*
 * MSECS_MIN_AGE: what is younger is not told, for its address may still be on
 * its way to where it is kept. Nothing tells user space when it is old enough.
 * One second more, for jiffies that the clock does not show.
 */
#define MIN_AGE_S 6
#define MAX_LINES 4000

static int send_leaks(struct answer *answer)
{
	FILE *file = fopen(KMEMLEAK, "re");
	struct items items = { 0 };
	char *line = NULL;
	size_t room = 0, lines = 0;

	if (!file)
		return errno;
	while (getline(&line, &room, file) > 0)
		if (lines++ < MAX_LINES) {
			line[strcspn(line, "\n")] = 0;
			items_add(&items, "leak", line);
		}
	free(line);
	fclose(file);
	items_send(&items, answer);
	return lines > MAX_LINES ? EOVERFLOW : items.error;
}

/* What is told once is not told again: an order is not blamed for what an earlier one lost. */
int verb_leaks(const struct command *command, struct answer *answer)
{
	struct timespec age = { .tv_sec = MIN_AGE_S };
	int error;

	(void)command;
	if (access(KMEMLEAK, F_OK))
		return errno;
	while (nanosleep(&age, &age) && errno == EINTR)
		;
	/*
	 * Not in stacks: in those of pages that a thread had before, pointers
	 * are left that would hide a loss, and nobody who sleeps there now
	 * needs memory of a module that is gone.
	 */
	error = host_write_file(KMEMLEAK, "stack=off");
	/* The first notes what each object holds; one that changed meanwhile is in use (kmemleak_scan(), update_checksum()). */
	if (!error)
		error = host_write_file(KMEMLEAK, "scan");
	if (!error)
		error = host_write_file(KMEMLEAK, "scan");
	if (!error)
		error = host_write_file(KMEMLEAK, "stack=on");
	if (!error)
		error = send_leaks(answer);
	if (!error)
		error = host_write_file(KMEMLEAK, "clear");
	return error;
}
