// SPDX-License-Identifier: GPL-2.0-only
/* One JSON object on one line of ASCII. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* What is put here has a known, small size; LINE_ROOM is kept free for it. */
static void put(struct line *line, const char *text)
{
	size_t count = strlen(text);

	if (count <= sizeof(line->text) - line->used) {
		memcpy(line->text + line->used, text, count);
		line->used += count;
	}
}

static void put_key(struct line *line, const char *key)
{
	put(line, line->used > 1 ? ",\"" : "\"");
	put(line, key);
	put(line, "\":");
}

/*
 * The quote and the backslash are escaped like any other byte that is not
 * printable: then a backslash has one meaning only, and the host side can
 * tell a damaged line by a simple pattern.
 */
static size_t put_quoted(struct line *line, const char *bytes, size_t count)
{
	static const char hex[] = "0123456789abcdef";

	line->text[line->used++] = '"';
	for (; count; bytes++, count--) {
		unsigned char byte = *bytes;
		bool plain = byte >= ' ' && byte < 0x7f && byte != '"' && byte != '\\';

		if (line->used + (plain ? 1 : 6) > sizeof(line->text) - LINE_ROOM)
			break;
		if (plain) {
			line->text[line->used++] = byte;
		} else {
			memcpy(line->text + line->used, "\\u00", 4);
			line->text[line->used + 4] = hex[byte >> 4];
			line->text[line->used + 5] = hex[byte & 15];
			line->used += 6;
		}
	}
	line->text[line->used++] = '"';
	return count;
}

void line_begin(struct line *line, const char *event)
{
	line->used = 0;
	put(line, "{");
	line_string(line, "ev", event);
}

void line_number(struct line *line, const char *key, uint64_t value)
{
	char digits[24];

	snprintf(digits, sizeof(digits), "%llu", (unsigned long long)value);
	put_key(line, key);
	put(line, digits);
}

void line_bool(struct line *line, const char *key, bool value)
{
	put_key(line, key);
	put(line, value ? "true" : "false");
}

size_t line_bytes(struct line *line, const char *key, const char *bytes, size_t count)
{
	put_key(line, key);
	return put_quoted(line, bytes, count);
}

void line_string(struct line *line, const char *key, const char *string)
{
	line_bytes(line, key, string, strlen(string));
}

void line_list_begin(struct line *line, const char *key)
{
	put_key(line, key);
	put(line, "[");
}

bool line_list_add(struct line *line, const char *string)
{
	size_t before = line->used;
	bool first = line->text[before - 1] == '[';

	if (!first)
		put(line, ",");
	if (put_quoted(line, string, strlen(string)) == 0)
		return true;
	line->used = before;
	return false;
}

bool line_list_add_number(struct line *line, uint64_t value)
{
	char digits[24];

	if (line->used + sizeof(digits) > sizeof(line->text) - LINE_ROOM)
		return false;
	snprintf(digits, sizeof(digits), "%s%llu", line->text[line->used - 1] == '[' ? "" : ",",
		 (unsigned long long)value);
	put(line, digits);
	return true;
}

void line_list_end(struct line *line)
{
	put(line, "]");
}

bool line_send(struct line *line, int fd)
{
	size_t done = 0;

	put(line, "}\n");
	while (done < line->used) {
		ssize_t n = write(fd, line->text + done, line->used - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		done += n;
	}
	return true;
}
