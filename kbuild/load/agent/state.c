// SPDX-License-Identifier: GPL-2.0-only
/* The state: what loading a module can leave behind. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define MAX_ITEMS 20000		/* far beyond any kernel; a bound, not an expectation */
#define ITEM_BYTES 600		/* fits a line even if each byte is escaped */
#define DEBUGFS_MAGIC 0x64626720
#define SETTLE_US 1000000
#define SETTLE_PAUSE_NS 20000000

/* Each item as "WHAT/ITEM": sorting groups them, and the hash covers both. */
struct items {
	char **at;
	size_t count, room;
	int error;
};

static void add(struct items *items, const char *what, const char *item)
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

static void forget(struct items *items)
{
	for (size_t i = 0; i < items->count; i++)
		free(items->at[i]);
	items->count = 0;
}

static bool is_dot(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

/* Returns false when there is no such folder. */
static bool add_folder(struct items *items, const char *what, const char *path, const char *prefix)
{
	DIR *folder = opendir(path);
	struct dirent *entry;
	char item[ITEM_BYTES];

	if (!folder)
		return false;
	while ((entry = readdir(folder))) {
		if (is_dot(entry->d_name))
			continue;
		snprintf(item, sizeof(item), "%s%s", prefix, entry->d_name);
		add(items, what, item);
	}
	closedir(folder);
	return true;
}

/* "kvm 1011712 1 kvm_intel, Live 0xffffffffc0000000 (O)": the address and the taint are left out. */
static bool add_modules(struct items *items)
{
	FILE *file = fopen("/proc/modules", "re");
	char *line = NULL;
	size_t room = 0;

	if (!file)
		return false;
	while (getline(&line, &room, file) > 0) {
		char *end = line;

		for (int field = 0; field < 5 && end; field++)
			end = strchr(end + (field > 0), ' ');
		line[end ? (size_t)(end - line) : strcspn(line, "\n")] = 0;
		add(items, "modules", line);
	}
	free(line);
	fclose(file);
	return true;
}

/* "232 kvm" */
static bool add_misc(struct items *items)
{
	FILE *file = fopen("/proc/misc", "re");
	char name[256];

	if (!file)
		return false;
	while (fscanf(file, "%*d %255s", name) == 1)
		add(items, "misc", name);
	fclose(file);
	return true;
}

/* A module that is built in has a folder too, but no initstate. */
static bool add_sysfs(struct items *items)
{
	DIR *folder = opendir("/sys/module");
	struct dirent *entry;

	if (!folder)
		return false;
	while ((entry = readdir(folder))) {
		char path[512], state[32], item[ITEM_BYTES];

		if (is_dot(entry->d_name))
			continue;
		snprintf(path, sizeof(path), "/sys/module/%s/initstate", entry->d_name);
		if (host_read_file(path, state, sizeof(state)) <= 0)
			continue;
		state[strcspn(state, "\n")] = 0;
		snprintf(item, sizeof(item), "%s %s", entry->d_name, state);
		add(items, "sysfs", item);
	}
	closedir(folder);
	return true;
}

static bool add_debugfs(struct items *items)
{
	struct statfs system;

	/* The folder is there without a mount as well, and would look clean. */
	if (statfs("/sys/kernel/debug", &system) || system.f_type != DEBUGFS_MAGIC)
		return false;
	add_folder(items, "debugfs", "/sys/kernel/debug/kvm", "kvm/");
	return add_folder(items, "debugfs", "/sys/kernel/debug", "");
}

static bool add_taint(struct items *items)
{
	char taint[32];

	if (host_read_file("/proc/sys/kernel/tainted", taint, sizeof(taint)) <= 0)
		return false;
	taint[strcspn(taint, "\n")] = 0;
	add(items, "taint", taint);
	return true;
}

static int compare(const void *left, const void *right)
{
	return strcmp(*(char *const *)left, *(char *const *)right);
}

static void collect(struct items *items)
{
	forget(items);
	/* What could not be looked at is said: an empty answer would look clean. */
	if (!add_modules(items))
		add(items, "absent", "modules");
	if (!add_folder(items, "slab", "/sys/kernel/slab", ""))
		add(items, "absent", "slab");
	if (!add_misc(items))
		add(items, "absent", "misc");
	if (!add_debugfs(items))
		add(items, "absent", "debugfs");
	if (!add_sysfs(items))
		add(items, "absent", "sysfs");
	if (!add_taint(items))
		add(items, "absent", "taint");
	if (!access("/dev/kvm", F_OK))
		add(items, "dev", "/dev/kvm");
	qsort(items->at, items->count, sizeof(*items->at), compare);
}

/* FNV-1a, 64 bits, over each "WHAT/ITEM" and a newline, in the order of their bytes. */
static void hash(const struct items *items, char *text, size_t size)
{
	uint64_t value = 0xcbf29ce484222325;

	for (size_t i = 0; i < items->count; i++) {
		const unsigned char *byte = (const unsigned char *)items->at[i];

		for (; *byte; byte++)
			value = (value ^ *byte) * 0x100000001b3;
		value = (value ^ '\n') * 0x100000001b3;
	}
	snprintf(text, size, "%016llx", (unsigned long long)value);
}

static void send_items(const struct items *items, const struct answer *answer)
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

int verb_state(const struct command *command, struct answer *answer)
{
	const char *expected = command->argc ? command->argv[0] : NULL;
	struct timespec pause = { .tv_nsec = SETTLE_PAUSE_NS };
	uint64_t start = host_us();
	struct items items = { 0 };
	char found[20];
	bool same;

	/*
	 * A cache with SLAB_TYPESAFE_BY_RCU, and a kobject under
	 * DEBUG_KOBJECT_RELEASE, go away some time after the unload, and
	 * nothing tells user space when. So what is expected is looked for
	 * until it is there, with a bound on what can only be a leak.
	 */
	for (;;) {
		collect(&items);
		if (items.error)
			return items.error;
		hash(&items, found, sizeof(found));
		same = expected && !strcmp(expected, found);
		if (!expected || same || host_us() - start > SETTLE_US)
			break;
		nanosleep(&pause, NULL);
	}
	if (!same)
		send_items(&items, answer);
	line_string(answer->result, "hash", found);
	line_bool(answer->result, "same", same);
	return 0;
}
