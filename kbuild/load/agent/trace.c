// SPDX-License-Identifier: GPL-2.0-only
/* The kernel's own tracer, as a host asks for it: settings in, lines out. */
#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TRACEFS "/sys/kernel/tracing/"
#define MAX_LINES 4000		/* of one answer: a host gives up on what takes too long */
#define MAX_BYTES 300000

const char *check_trace(const struct command *command)
{
	const char *file = command->argv[0];

	/* A path, but not out of there. */
	return file[0] == '/' || strstr(file, "..") ? "not a file of tracefs" : NULL;
}

/* "trace FILE" empties a setting, "trace FILE TEXT" adds a line to it, or puts it on that. */
int verb_trace(const struct command *command, struct answer *answer)
{
	bool add = command->argc > 1;
	char path[COMMAND_BYTES + sizeof(TRACEFS)], text[COMMAND_BYTES + 2];
	int fd, error = 0;
	size_t length;

	(void)answer;
	snprintf(path, sizeof(path), TRACEFS "%s", command->argv[0]);
	fd = open(path, O_WRONLY | O_CLOEXEC | (add ? O_APPEND : O_TRUNC));
	if (fd < 0)
		return errno;
	if (add) {
		length = snprintf(text, sizeof(text), "%s\n", command->argv[1]);
		/* Some settings take a part at a time and say how much that was. */
		for (size_t done = 0; done < length && !error;) {
			ssize_t n = write(fd, text + done, length - done);

			if (n <= 0)
				error = n ? errno : EIO;
			else
				done += n;
		}
	}
	/* ftrace's filters take effect when they are closed. */
	if (close(fd) && !error)
		error = errno;
	return error;
}

/* What the ring buffers had no room for: kernel/trace/trace.c, tracing_stats_read(). */
static bool count_lost(uint64_t *lost)
{
	static const char *const kinds[] = { "\noverrun: ", "\ncommit overrun: ", "\ndropped events: " };
	glob_t found;
	bool there;

	*lost = 0;
	if (glob(TRACEFS "per_cpu/cpu*/stats", 0, NULL, &found))
		return false;
	there = found.gl_pathc > 0;
	for (size_t i = 0; i < found.gl_pathc; i++) {
		char text[1024];

		if (host_read_file(found.gl_pathv[i], text, sizeof(text)) <= 0)
			there = false;
		for (size_t k = 0; there && k < sizeof(kinds) / sizeof(kinds[0]); k++) {
			const char *at = strstr(text, kinds[k]);

			if (at)
				*lost += strtoull(at + strlen(kinds[k]), NULL, 10);
			else
				there = false;
		}
	}
	globfree(&found);
	return there;
}

/* "sections MODULE": where the sections of a loaded module are, "NAME ADDRESS" each. */
int verb_sections(const struct command *command, struct answer *answer)
{
	char path[COMMAND_BYTES + 64], file[COMMAND_BYTES + 400], address[64], item[300];
	struct dirent *entry;
	struct line line;
	DIR *folder;

	snprintf(path, sizeof(path), "/sys/module/%s/sections", command->argv[0]);
	folder = opendir(path);
	if (!folder)
		return errno;
	line_begin(&line, "items");
	line_number(&line, "id", answer->id);
	line_string(&line, "what", "sections");
	line_list_begin(&line, "items");
	while ((entry = readdir(folder))) {
		snprintf(file, sizeof(file), "%s/%s", path, entry->d_name);
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
		    host_read_file(file, address, sizeof(address)) <= 0)
			continue;
		address[strcspn(address, "\n")] = 0;
		snprintf(item, sizeof(item), "%.200s %s", entry->d_name, address);
		/* A module has some forty, of thirty bytes each. */
		if (!line_list_add(&line, item))
			break;
	}
	closedir(folder);
	line_list_end(&line);
	line_send(&line, answer->fd);
	return 0;
}

/* Runs of blanks become one, those at both ends go: columns are for people. Returns the length. */
static size_t squeeze(char *text)
{
	char *to = text;

	for (const char *from = text; *from; from++) {
		if (*from == '\n')
			break;
		if (*from == ' ' && (to == text || to[-1] == ' '))
			continue;
		*to++ = *from;
	}
	if (to > text && to[-1] == ' ')
		to--;
	*to = 0;
	return to - text;
}

/*
 * A probe's line whose place is in the kernel itself: "e3: (down_write+0x0/0x70) caller=PLACE …", or
 * "r3: (PLACE <- down_write) …". Some functions are called a thousand times a load, and only what
 * modules call matters. Behind a traced function's tail call the place is the tracer's return_to_handler().
 */
static bool is_kernels_own(const char *text)
{
	const char *event = strstr(text, "| /* "), *place, *end;

	if (!event)
		return false;
	place = strstr(event, " caller=");
	if (place) {
		place += strlen(" caller=");
	} else {
		place = strchr(event, '(');
		if (!place || !strstr(place, " <- "))
			return false;
		place++;
	}
	end = strchr(place, ' ');
	return end && end[1] != '[' && strncmp(place, "return_to_handler", strlen("return_to_handler"));
}

/* "traced FILE FIRST": lines of a file of tracefs, comments left out, from that number on. */
int verb_traced(const struct command *command, struct answer *answer)
{
	uint64_t first = strtoull(command->argv[1], NULL, 10), number = 0, lost;
	char path[COMMAND_BYTES + sizeof(TRACEFS)];
	size_t room = 0, bytes = 0;
	bool open = false, more = false;
	char *text = NULL;
	struct line line;
	FILE *file;

	snprintf(path, sizeof(path), TRACEFS "%s", command->argv[0]);
	file = fopen(path, "re");
	if (!file)
		return errno;
	while (getline(&text, &room, file) > 0) {
		size_t length = squeeze(text);

		if (!length || text[0] == '#' || is_kernels_own(text) || number++ < first)
			continue;
		bytes += length;
		if (number - first > MAX_LINES || bytes > MAX_BYTES) {
			more = true;
			break;
		}
		/* Longer than a line of ours can be: there, a string is cut and not a line. */
		if (length > LINE_BYTES / 8)
			text[LINE_BYTES / 8] = 0;
		if (open && !line_list_add(&line, text)) {
			line_list_end(&line);
			line_send(&line, answer->fd);
			open = false;
		}
		if (!open) {
			line_begin(&line, "items");
			line_number(&line, "id", answer->id);
			line_string(&line, "what", command->argv[0]);
			line_list_begin(&line, "items");
			line_list_add(&line, text);
			open = true;
		}
	}
	if (open) {
		line_list_end(&line);
		line_send(&line, answer->fd);
	}
	free(text);
	fclose(file);
	line_bool(answer->result, "more", more);
	if (!count_lost(&lost))
		return ENODATA;
	line_number(answer->result, "lost", lost);
	return 0;
}
