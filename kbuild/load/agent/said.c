// SPDX-License-Identifier: GPL-2.0-only
/* The log of a command in parts: each text once, and then by its number. */
#include "agent.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TEXTS 4096

struct text {
	uint64_t hash;		/* of all but the time */
	char *bytes;
	size_t length;
};

struct said {
	int out;
	uint64_t id, part;
	struct line line;	/* records that are not sent yet */
	uint64_t next;		/* the sequence number that goes on with it; 0: there is none */
	size_t count;
	struct text texts[MAX_TEXTS];
};

struct said *said_begin(int out, uint64_t id)
{
	struct said *said = calloc(1, sizeof(*said));

	if (said) {
		said->out = out;
		said->id = id;
	}
	return said;
}

void said_end(struct said *said)
{
	if (!said)
		return;
	for (size_t i = 0; i < said->count; i++)
		free(said->texts[i].bytes);
	free(said);
}

void said_flush(struct said *said)
{
	if (!said->next)
		return;
	line_list_end(&said->line);
	line_send(&said->line, said->out);
	said->next = 0;
}

void said_part(struct said *said, uint64_t part)
{
	said_flush(said);
	said->part = part;
}

uint64_t said_part_now(const struct said *said)
{
	return said->part;
}

static uint64_t hash(uint64_t value, const char *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		value = (value ^ (unsigned char)bytes[i]) * 0x100000001b3;
	return value;
}

static uint64_t hash_of(const struct record *record)
{
	const unsigned int more[] = { record->level, record->facility, record->continues };
	uint64_t value = hash(0xcbf29ce484222325, (const char *)more, sizeof(more));

	value = hash(value, record->caller, strlen(record->caller));
	return hash(value, record->text, record->length);
}

/* From 0; the number of texts if it is a new one. */
static size_t find(const struct said *said, const struct record *record, uint64_t hash)
{
	size_t i;

	for (i = 0; i < said->count; i++)
		if (said->texts[i].hash == hash && said->texts[i].length == record->length &&
		    !memcmp(said->texts[i].bytes, record->text, record->length))
			break;
	return i;
}

/* Returns how many bytes were sent. A table that is full has its last number given anew. */
static size_t add_text(struct said *said, const struct record *record, uint64_t hash, size_t number)
{
	struct text *text = &said->texts[number];
	struct line line;

	if (number < said->count)
		free(text->bytes);
	else
		said->count++;
	text->bytes = malloc(record->length + 1);
	text->length = text->bytes ? record->length : 0;
	text->hash = text->bytes ? hash : 0;
	if (text->bytes)
		memcpy(text->bytes, record->text, record->length);
	line_begin(&line, "text");
	line_number(&line, "id", said->id);
	line_number(&line, "number", number);
	line_record(&line, record);
	line_send(&line, said->out);
	return line.used;
}

size_t said_add(struct said *said, const struct record *record)
{
	uint64_t hash = hash_of(record);
	size_t number = find(said, record, hash), sent = 0;

	if (number == said->count) {
		if (number == MAX_TEXTS) {
			/* What is held back may have that number in its old meaning. */
			said_flush(said);
			number--;
		}
		sent = add_text(said, record, hash, number);
	}
	if (said->next != record->seq || !line_list_add_number(&said->line, number)) {
		said_flush(said);
		line_begin(&said->line, "said");
		line_number(&said->line, "id", said->id);
		line_number(&said->line, "part", said->part);
		line_number(&said->line, "seq", record->seq);
		line_number(&said->line, "us", record->us);
		line_list_begin(&said->line, "texts");
		line_list_add_number(&said->line, number);
	}
	said->next = record->seq + 1;
	return sent + 4;
}
