/* SPDX-License-Identifier: GPL-2.0-only */
/* What the agent has seen, and who looks where. */
#ifndef ITEMS_H
#define ITEMS_H

#include "agent.h"

#define ITEM_BYTES 600		/* fits a line even if each byte is escaped */

/* items.c: each item as "WHAT/ITEM": sorting groups them, and the hash covers both. */
struct items {
	char **at;
	size_t count, room;
	int error;
};

void items_add(struct items *items, const char *what, const char *item);
void items_forget(struct items *items);
/* Sorts them. */
void items_hash(struct items *items, char *text, size_t size);
void items_send(const struct items *items, const struct answer *answer);

/* kinds_files.c, kinds_folders.c: each adds what it sees; false when the kernel does not show it. */
bool add_modules(struct items *items, const char *what);
bool add_slab(struct items *items, const char *what);
bool add_slab_sizes(struct items *items, const char *what);
bool add_misc(struct items *items, const char *what);
bool add_dev(struct items *items, const char *what);
bool add_debugfs(struct items *items, const char *what);
bool add_sysfs(struct items *items, const char *what);
bool add_objects(struct items *items, const char *what);
bool add_parameters(struct items *items, const char *what);
bool add_workqueues(struct items *items, const char *what);
bool add_cpuhp(struct items *items, const char *what);
bool add_cpus(struct items *items, const char *what);
bool add_threads(struct items *items, const char *what);
bool add_kallsyms(struct items *items, const char *what);
bool add_vmalloc(struct items *items, const char *what);
bool add_taint(struct items *items, const char *what);

/* kinds.c: all kinds down to a depth; those that cost more are deeper. What is not shown becomes an item `absent`. */
enum { LOOK_MODULES, LOOK_STATE, LOOK_DETAIL };

void look(struct items *items, int depth);

#endif
