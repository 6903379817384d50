// SPDX-License-Identifier: GPL-2.0-only
/* The kinds of what loading a module can leave behind. */
#include "agent.h"
#include "items.h"

static const struct kind {
	const char *name;
	int depth;
	bool (*look)(struct items *items, const char *what);
} kinds[] = {
	{ "modules", LOOK_MODULES, add_modules },
	{ "sysfs", LOOK_MODULES, add_sysfs },
	{ "dev", LOOK_MODULES, add_dev },
	{ "misc", LOOK_STATE, add_misc },
	{ "slab", LOOK_STATE, add_slab },
	{ "debugfs", LOOK_STATE, add_debugfs },
	{ "object", LOOK_STATE, add_objects },
	{ "workqueue", LOOK_STATE, add_workqueues },
	{ "thread", LOOK_STATE, add_threads },
	{ "vmalloc", LOOK_STATE, add_vmalloc },
	{ "cpuhp", LOOK_STATE, add_cpuhp },
	{ "cpu", LOOK_STATE, add_cpus },
	{ "taint", LOOK_STATE, add_taint },
	{ "size", LOOK_DETAIL, add_slab_sizes },
	{ "parameter", LOOK_DETAIL, add_parameters },
	{ "kallsyms", LOOK_DETAIL, add_kallsyms },
};

void look(struct items *items, int depth)
{
	items_forget(items);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && kinds[i].depth <= depth; i++) {
		/* A name that leads into a module that is gone kills who reads it: then it is known where. */
		doing(kinds[i].name);
		/* What could not be looked at is said: an empty answer would look clean. */
		if (!kinds[i].look(items, kinds[i].name))
			items_add(items, "absent", kinds[i].name);
	}
	doing("");
}
