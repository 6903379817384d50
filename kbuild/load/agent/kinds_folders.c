// SPDX-License-Identifier: GPL-2.0-only
/* What loading a module can leave behind, as names in folders of the kernel. docs/agent.md has the items. */
#include "agent.h"
#include "items.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/vfs.h>

#define DEBUGFS_MAGIC 0x64626720

static bool is_dot(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

static bool is_told_elsewhere(const char *path)
{
	return !strcmp(path, "/sys/class/misc") || !strcmp(path, "/sys/bus/workqueue/devices");
}

/* Names of a folder and, down to a depth, of the folders in it. Returns false when there is none. */
static bool add_folder(struct items *items, const char *what, const char *path, const char *prefix, int depth)
{
	DIR *folder = opendir(path);
	struct dirent *entry;
	char item[ITEM_BYTES], inside[ITEM_BYTES];

	if (!folder)
		return false;
	while ((entry = readdir(folder))) {
		if (is_dot(entry->d_name))
			continue;
		snprintf(item, sizeof(item), "%s%s", prefix, entry->d_name);
		items_add(items, what, item);
		snprintf(inside, sizeof(inside), "%s/%s", path, entry->d_name);
		if (depth <= 1 || entry->d_type != DT_DIR || is_told_elsewhere(inside))
			continue;
		strncat(item, "/", sizeof(item) - strlen(item) - 1);
		add_folder(items, what, inside, item, depth - 1);
	}
	closedir(folder);
	return true;
}

bool add_slab(struct items *items, const char *what)
{
	return add_folder(items, what, "/sys/kernel/slab", "", 1);
}

/* Not /proc/misc: the list that it walks leads into the memory of a module that left a device and is gone. */
bool add_misc(struct items *items, const char *what)
{
	return add_folder(items, what, "/sys/class/misc", "", 1);
}

bool add_dev(struct items *items, const char *what)
{
	return add_folder(items, what, "/dev", "/dev/", 2);
}

bool add_debugfs(struct items *items, const char *what)
{
	struct statfs system;

	/* The folder is there without a mount as well, and would look clean. */
	if (statfs("/sys/kernel/debug", &system) || system.f_type != DEBUGFS_MAGIC)
		return false;
	add_folder(items, what, "/sys/kernel/debug/kvm", "kvm/", 1);
	return add_folder(items, what, "/sys/kernel/debug", "", 1);
}

/* A module that is built in has a folder too, but no initstate. */
bool add_sysfs(struct items *items, const char *what)
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
		items_add(items, what, item);
	}
	closedir(folder);
	return true;
}

/*
 * Buses with their devices and drivers, classes with their devices, and what has a folder of its own at the top.
 * What is a kind of its own is not told twice.
 */
bool add_objects(struct items *items, const char *what)
{
	static const struct { const char *path, *prefix; int depth; } tops[] = {
		{ "/sys/bus", "bus/", 3 },
		{ "/sys/class", "class/", 2 },
		{ "/sys/devices", "devices/", 1 },
		{ "/sys/fs", "fs/", 1 },
		{ "/sys/kernel", "kernel/", 1 },
	};
	bool there = false;

	for (size_t i = 0; i < sizeof(tops) / sizeof(tops[0]); i++)
		there |= add_folder(items, what, tops[i].path, tops[i].prefix, tops[i].depth);
	return there;
}

/* "kvm.tdp_mmu Y": of modules that can be unloaded; what user space may not read is left out. */
bool add_parameters(struct items *items, const char *what)
{
	DIR *modules = opendir("/sys/module");
	struct dirent *module, *entry;

	if (!modules)
		return false;
	while ((module = readdir(modules))) {
		char path[1024], value[256], item[ITEM_BYTES];
		DIR *folder;

		snprintf(path, sizeof(path), "/sys/module/%s/initstate", module->d_name);
		if (is_dot(module->d_name) || host_read_file(path, value, sizeof(value)) <= 0)
			continue;
		snprintf(path, sizeof(path), "/sys/module/%s/parameters", module->d_name);
		folder = opendir(path);
		while (folder && (entry = readdir(folder))) {
			snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", module->d_name, entry->d_name);
			if (is_dot(entry->d_name) || host_read_file(path, value, sizeof(value)) < 0)
				continue;
			value[strcspn(value, "\n")] = 0;
			snprintf(item, sizeof(item), "%.100s.%.100s %s", module->d_name, entry->d_name, value);
			items_add(items, what, item);
		}
		if (folder)
			closedir(folder);
	}
	closedir(modules);
	return true;
}

bool add_workqueues(struct items *items, const char *what)
{
	return add_folder(items, what, "/sys/bus/workqueue/devices", "", 1);
}

/*
 * Those that come and go by themselves: of the pools of workqueues with the work, but for rescuers; crypto/algboss.c
 * starts one to find an algorithm, as a module's signature may want it, and one to test it, which a slow machine is at
 * for a while after the boot.
 */
static bool passes(const char *name)
{
	return (!strncmp(name, "kworker/", 8) && strncmp(name, "kworker/R-", 10)) || !strcmp(name, "cryptomgr_probe") ||
	       !strcmp(name, "cryptomgr_test");
}

/* Threads of the kernel: children of kthreadd. */
bool add_threads(struct items *items, const char *what)
{
	DIR *folder = opendir("/proc");
	struct dirent *entry;

	if (!folder)
		return false;
	while ((entry = readdir(folder))) {
		char path[300], stat[512], *name, *end;
		int parent = 0;

		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", entry->d_name);
		if (host_read_file(path, stat, sizeof(stat)) <= 0)
			continue;
		name = strchr(stat, '(');
		end = strrchr(stat, ')');
		if (!name || !end || sscanf(end + 1, " %*c %d", &parent) != 1 || parent != 2)
			continue;
		*end = 0;
		if (!passes(name + 1))
			items_add(items, what, name + 1);
	}
	closedir(folder);
	return true;
}
