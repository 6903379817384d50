// SPDX-License-Identifier: GPL-2.0-only
/* The state: what loading a module can leave behind. */
#include "agent.h"
#include "items.h"

#include <string.h>
#include <time.h>

#define SETTLE_US 1000000
#define SETTLE_PAUSE_NS 20000000

int verb_state(const struct command *command, struct answer *answer)
{
	const char *expected = command->argc ? command->argv[0] : NULL;
	struct timespec pause = { .tv_nsec = SETTLE_PAUSE_NS };
	uint64_t start = host_us();
	static struct items items;	/* its room is used again in a sweep */
	char found[20];
	bool same;

	/*
	 * A cache with SLAB_TYPESAFE_BY_RCU, and a kobject under
	 * DEBUG_KOBJECT_RELEASE, go away some time after the unload, and
	 * nothing tells user space when. So what is expected is looked for
	 * until it is there, with a bound on what can only be a leak.
	 */
	for (;;) {
		look(&items, LOOK_STATE);
		if (items.error)
			return items.error;
		items_hash(&items, found, sizeof(found));
		same = expected && !strcmp(expected, found);
		if (!expected || same || host_us() - start > SETTLE_US)
			break;
		nanosleep(&pause, NULL);
	}
	if (!same)
		items_send(&items, answer);
	line_string(answer->result, "hash", found);
	line_bool(answer->result, "same", same);
	answer->same = same;
	return 0;
}

static int look_once(struct answer *answer, int depth)
{
	struct items items = { 0 };
	char found[20];

	look(&items, depth);
	if (items.error)
		return items.error;
	items_hash(&items, found, sizeof(found));
	items_send(&items, answer);
	line_string(answer->result, "hash", found);
	return 0;
}

int verb_modules(const struct command *command, struct answer *answer)
{
	(void)command;
	return look_once(answer, LOOK_MODULES);
}

int verb_detail(const struct command *command, struct answer *answer)
{
	(void)command;
	return look_once(answer, LOOK_DETAIL);
}
