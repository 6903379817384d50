// SPDX-License-Identifier: GPL-2.0-only
/* How much memory the kernel has in use, by what for: exact enough for a page or an object that is lost in each cycle. */
#include "agent.h"
#include "items.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLAB "/sys/kernel/slab"
#define SETTLE_US 1000000
#define SETTLE_PAUSE_NS 20000000

/*
 * What is only kept for later is given back first: names of files and pages of
 * them (fs/drop_caches.c; the 4 keeps it from saying so each time). Counts that
 * CPUs keep for themselves are added up (mm/vmstat.c, vmstat_refresh()).
 */
static void give_back(void)
{
	host_write_file("/proc/sys/vm/drop_caches", "4\n");
	host_write_file("/proc/sys/vm/drop_caches", "3\n");
	host_write_file("/proc/sys/vm/stat_refresh", "1\n");
}

/* Sums over all that is measured. */
struct used {
	long long pages, objects;
};

static void add_number(struct items *items, const char *name, long long value)
{
	char item[ITEM_BYTES];

	snprintf(item, sizeof(item), "%s %lld", name, value);
	items_add(items, "memory", item);
}

/*
 * Objects in use, of one cache. Of the slab from which a CPU allocates all objects
 * count as in use, so it is taken from it (mm/slub.c, shrink_store()); and what
 * reading takes has been taken before, or the CPU would have another slab by then.
 */
static long long objects_of(const char *cache)
{
	char path[512], text[256];
	int objects, shrink;
	ssize_t length = -1;

	snprintf(path, sizeof(path), SLAB "/%s/objects", cache);
	objects = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof(path), SLAB "/%s/shrink", cache);
	shrink = open(path, O_WRONLY | O_CLOEXEC);
	if (objects >= 0 && shrink >= 0 && pread(objects, text, sizeof(text) - 1, 0) > 0 && write(shrink, "1\n", 2) == 2)
		length = pread(objects, text, sizeof(text) - 1, 0);
	if (objects >= 0)
		close(objects);
	if (shrink >= 0)
		close(shrink);
	if (length <= 0)
		return -1;
	text[length] = 0;
	return strtoll(text, NULL, 10);
}

/* A cache that is only another name of one is a link. */
static bool add_caches(struct items *items, struct used *used)
{
	DIR *folder = opendir(SLAB);
	struct dirent *entry;
	char name[300];

	if (!folder)
		return false;
	while ((entry = readdir(folder))) {
		long long count = entry->d_type == DT_DIR && entry->d_name[0] != '.' ? objects_of(entry->d_name) : -1;

		if (count < 0)
			continue;
		snprintf(name, sizeof(name), "slab/%s", entry->d_name);
		add_number(items, name, count);
		used->objects += count;
	}
	closedir(folder);
	return true;
}

/* Pages of slabs that can be reclaimed: how many such objects (names of files, mostly) take says where they happen to lie. */
static long long reclaimable_pages(void)
{
	FILE *file = fopen("/proc/vmstat", "re");
	char name[64];
	long long value, found = 0;

	while (file && fscanf(file, "%63s %lld", name, &value) == 2)
		if (!strcmp(name, "nr_slab_reclaimable"))
			found = value;
	if (file)
		fclose(file);
	return found;
}

/*
 * Pages in use: all that the kernel manages, without those that are free, kept
 * by a CPU for its next allocations, or of slabs that can be reclaimed.
 */
static bool add_pages(struct items *items, struct used *used)
{
	FILE *file = fopen("/proc/zoneinfo", "re");
	long long managed = 0, free_pages = 0, kept = 0, value;
	char *line = NULL;
	size_t room = 0;

	if (!file)
		return false;
	while (getline(&line, &room, file) > 0) {
		if (sscanf(line, " pages free %lld", &value) == 1)
			free_pages += value;
		else if (sscanf(line, " managed %lld", &value) == 1)
			managed += value;
		else if (sscanf(line, " count: %lld", &value) == 1)
			kept += value;
	}
	free(line);
	fclose(file);
	used->pages = managed - free_pages - kept - reclaimable_pages();
	add_number(items, "pages", used->pages);
	return true;
}

/* KiB, of what has a line of its own: "Percpu:             48 kB". */
static bool add_totals(struct items *items)
{
	static const char *const wanted[] = { "KernelStack", "PageTables", "Percpu", "SUnreclaim", "VmallocUsed" };
	FILE *file = fopen("/proc/meminfo", "re");
	char *line = NULL, name[64];
	long long value;
	size_t room = 0;

	if (!file)
		return false;
	while (getline(&line, &room, file) > 0)
		for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
			if (sscanf(line, "%63[^:]: %lld", name, &value) == 2 && !strcmp(name, wanted[i]))
				add_number(items, name, value);
	free(line);
	fclose(file);
	return true;
}

static struct used measure(struct items *items)
{
	struct used used = { 0 };

	items_forget(items);
	give_back();
	if (!add_caches(items, &used))
		items_add(items, "absent", "slab");
	if (!add_pages(items, &used))
		items_add(items, "absent", "pages");
	if (!add_totals(items))
		items_add(items, "absent", "totals");
	return used;
}

/* What is freed later (by RCU, by work) is waited for: until there is no less from one look to the next. */
int verb_memory(const struct command *command, struct answer *answer)
{
	struct timespec pause = { .tv_nsec = SETTLE_PAUSE_NS };
	uint64_t start = host_us();
	struct items items = { 0 };
	struct used now, before;
	char hash[20];

	(void)command;
	now = measure(&items);
	do {
		before = now;
		nanosleep(&pause, NULL);
		now = measure(&items);
	} while ((now.pages < before.pages || now.objects < before.objects) && host_us() - start < SETTLE_US);
	if (items.error)
		return items.error;
	items_hash(&items, hash, sizeof(hash));
	items_send(&items, answer);
	line_string(answer->result, "hash", hash);
	return 0;
}
