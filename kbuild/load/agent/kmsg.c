// SPDX-License-Identifier: GPL-2.0-only
/* The kernel's log, from /dev/kmsg: Documentation/ABI/testing/dev-kmsg. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_RECORDS 5000
#define MAX_BYTES (1u << 20)
/* The kernel refuses to read into less than one formatted record: CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX. */
#define RECORD_BYTES 16384
#define MARK "kvm-kbuild: step "
#define LEVEL_WARNING 4
#define LEVEL_DEBUG 7

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/* msg_add_ext_text() writes each byte outside of ' '..'~', and the backslash, as \xNN. In place. */
static size_t unescape(char *text, size_t length)
{
	size_t from = 0, to = 0;

	while (from < length) {
		if (from + 3 < length && text[from] == '\\' && text[from + 1] == 'x' &&
		    hex_digit(text[from + 2]) >= 0 && hex_digit(text[from + 3]) >= 0) {
			text[to++] = hex_digit(text[from + 2]) << 4 | hex_digit(text[from + 3]);
			from += 4;
		} else {
			text[to++] = text[from++];
		}
	}
	return to;
}

/*
 * "PREFIX,SEQUENCE,MICROSECONDS,FLAGS[,caller=T1][,more];TEXT\n", then lines
 * " KEY=VALUE" that name a device. Later kernels may add fields before ';'.
 */
static bool parse(char *buffer, size_t length, struct record *record)
{
	unsigned int prefix;
	unsigned long long seq, us;
	char flag, *text, *caller, *end;

	buffer[length] = 0;
	text = strchr(buffer, ';');
	if (!text)
		return false;
	*text++ = 0;
	if (sscanf(buffer, "%u,%llu,%llu,%c", &prefix, &seq, &us, &flag) != 4)
		return false;
	record->level = prefix & 7;
	record->facility = prefix >> 3;
	record->seq = seq;
	record->us = us;
	record->continues = flag == 'c';
	record->caller[0] = 0;
	caller = strstr(buffer, ",caller=");
	if (caller)
		sscanf(caller, ",caller=%23[^,]", record->caller);
	end = strchr(text, '\n');
	record->text = text;
	record->length = unescape(text, end ? (size_t)(end - text) : strlen(text));
	return true;
}

/* False: nothing more to read now. */
static bool read_record(struct kmsg *log, char *buffer, struct record *record)
{
	for (;;) {
		ssize_t n = read(log->fd, buffer, RECORD_BYTES - 1);

		/* EPIPE: overwritten before we came; the next read goes on with the oldest one left. */
		if (n < 0 && (errno == EINTR || errno == EPIPE))
			continue;
		if (n <= 0)
			return false;
		if (parse(buffer, n, record))
			return true;
	}
}

static void send_lost(struct kmsg *log)
{
	struct line line;

	if (!log->lost)
		return;
	line_begin(&line, "lost");
	line_number(&line, "id", log->id);
	line_number(&line, "records", log->lost);
	if (log->said)
		line_number(&line, "part", said_part_now(log->said));
	line_send(&line, log->out);
	log->lost = 0;
}

void line_record(struct line *line, const struct record *record)
{
	size_t cut;

	line_number(line, "level", record->level);
	if (record->facility)
		line_number(line, "facility", record->facility);
	if (record->caller[0])
		line_string(line, "caller", record->caller);
	if (record->continues)
		line_bool(line, "cont", true);
	cut = line_bytes(line, "text", record->text, record->length);
	if (cut)
		line_number(line, "cut", cut);
}

static void send_record(struct kmsg *log, const struct record *record)
{
	struct line line;

	log->records++;
	if (log->said) {
		log->bytes += said_add(log->said, record);
		return;
	}
	line_begin(&line, "log");
	line_number(&line, "id", log->id);
	line_number(&line, "seq", record->seq);
	line_number(&line, "us", record->us);
	line_record(&line, record);
	line_send(&line, log->out);
	log->bytes += line.used;
}

static bool is_mark(const struct record *record)
{
	/* Facility 0 is the kernel's own: what user space writes never has it. */
	return record->facility && record->length > strlen(MARK) &&
	       !memcmp(record->text, MARK, strlen(MARK));
}

/* A mark that kmsg_part() made of the command that is under way: the part, else 0. */
static uint64_t part_of(const struct kmsg *log, const struct record *record)
{
	char wanted[64], *end;
	size_t length = snprintf(wanted, sizeof(wanted), MARK "%llu part ", (unsigned long long)log->id);
	uint64_t part;

	if (record->length <= length || memcmp(record->text, wanted, length))
		return 0;
	part = strtoull(record->text + length, &end, 10);
	return end == record->text + record->length ? part : 0;
}

static void next_part(struct kmsg *log, uint64_t part)
{
	send_lost(log);
	said_part(log->said, part);
	log->records = 0;
	log->bytes = 0;
}

static bool is_full(const struct kmsg *log)
{
	return log->records >= MAX_RECORDS || log->bytes >= MAX_BYTES;
}

/*
 * Sends records up to the last one, or up to the mark `until`: of a kernel
 * that never falls silent there is no last one.
 */
static void drain(struct kmsg *log, const char *until)
{
	char buffer[RECORD_BYTES];
	struct record record;

	if (log->fd < 0)
		return;
	while (until || !is_full(log)) {
		if (!read_record(log, buffer, &record))
			return;
		if (log->counting && record.seq > log->next)
			log->lost += record.seq - log->next;
		log->next = record.seq + 1;
		log->counting = true;
		if (is_mark(&record)) {
			uint64_t part = log->said ? part_of(log, &record) : 0;

			if (until && record.length == strlen(until) && !memcmp(record.text, until, record.length))
				return;
			if (part)
				next_part(log, part);
		} else if (record.level > log->worst_level) {
			continue;
		} else if (is_full(log)) {
			log->lost++;
		} else {
			send_lost(log);
			send_record(log, &record);
		}
	}
	/* What is jumped over shows as a gap in the sequence numbers, and is counted as one. */
	lseek(log->fd, 0, SEEK_END);
}

static void mark(struct kmsg *log, const char *what, char *text, size_t size)
{
	int length = snprintf(text, size, MARK "%llu %s\n", (unsigned long long)log->id, what);

	/*
	 * Only the newline makes a record readable at once: without it, and
	 * this goes for the kernel's own records too, it stays open for
	 * pr_cont() until the next one comes (printk.c, vprintk_store()).
	 */
	if (log->fd >= 0 && write(log->fd, text, length) < 0)
		errno = 0;	/* nothing depends on it: drain() ends without it as well */
	text[length - 1] = 0;
}

void kmsg_open(struct kmsg *log, int out, bool since_boot)
{
	*log = (struct kmsg){ .out = out, .counting = since_boot, .worst_level = LEVEL_WARNING };
	log->fd = open("/dev/kmsg", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (!since_boot && log->fd >= 0)
		lseek(log->fd, 0, SEEK_END);
}

void kmsg_drain(struct kmsg *log)
{
	drain(log, NULL);
}

void kmsg_step_begin(struct kmsg *log, uint64_t id)
{
	char text[64];

	drain(log, NULL);
	send_lost(log);
	log->id = id;
	log->worst_level = LEVEL_DEBUG;
	log->records = 0;
	log->bytes = 0;
	mark(log, "begin", text, sizeof(text));
}

void kmsg_step_end(struct kmsg *log)
{
	char text[64];

	/* The end mark must come soon: without this, all of a flood would be read first. */
	if (is_full(log))
		drain(log, NULL);
	mark(log, "end", text, sizeof(text));
	drain(log, text);
	kmsg_flush(log);
	send_lost(log);
}

void kmsg_flush(struct kmsg *log)
{
	if (log->said)
		said_flush(log->said);
}

void kmsg_part(uint64_t id, uint64_t part)
{
	static int fd = -1;

	if (fd < 0)
		fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		dprintf(fd, MARK "%llu part %llu\n", (unsigned long long)id, (unsigned long long)part);
}
