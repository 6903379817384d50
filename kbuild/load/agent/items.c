// SPDX-License-Identifier: GPL-2.0-only
/* What the agent has seen, as sorted lines "WHAT/ITEM": collected, hashed and sent. */
#include "agent.h"
#include "items.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ITEMS 20000		/* far beyond any kernel; a bound, not an expectation */

void items_add(struct items *items, const char *what, const char *item)
{
	char text[ITEM_BYTES];

	if (items->count == items->room) {
		size_t room = items->room ? items->room * 2 : 256;
		char **at = room <= 2 * MAX_ITEMS ? realloc(items->at, room * sizeof(*at)) : NULL;

		if (!at) {
			items->error = ENOMEM;
			return;
		}
		items->at = at;
		items->room = room;
	}
	snprintf(text, sizeof(text), "%s/%s", what, item);
	items->at[items->count] = strdup(text);
	if (items->at[items->count])
		items->count++;
	else
		items->error = ENOMEM;
}

void items_forget(struct items *items)
{
	for (size_t i = 0; i < items->count; i++)
		free(items->at[i]);
	items->count = 0;
}

static int compare(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

/* FNV-1a, 64 bits, over each "WHAT/ITEM" and a newline, in the order of their bytes. */
void items_hash(struct items *items, char *text, size_t size)
{
	uint64_t value = 0xcbf29ce484222325;

	qsort(items->at, items->count, sizeof(*items->at), compare);
	for (size_t i = 0; i < items->count; i++) {
		const unsigned char *byte = (const unsigned char *)items->at[i];

		for (; *byte; byte++)
			value = (value ^ *byte) * 0x100000001b3;
		value = (value ^ '\n') * 0x100000001b3;
	}
	snprintf(text, size, "%016llx", (unsigned long long)value);
}

void items_send(const struct items *items, const struct answer *answer)
{
	struct line line;
	size_t i = 0;

	while (i < items->count) {
		size_t what = strcspn(items->at[i], "/");
		const char *group = items->at[i];
		char name[32];

		snprintf(name, sizeof(name), "%.*s", (int)what, group);
		line_begin(&line, "items");
		line_number(&line, "id", answer->id);
		line_string(&line, "what", name);
		line_list_begin(&line, "items");
		while (i < items->count && !strncmp(items->at[i], group, what + 1) &&
		       line_list_add(&line, items->at[i] + what + 1))
			i++;
		line_list_end(&line);
		line_send(&line, answer->fd);
	}
}
