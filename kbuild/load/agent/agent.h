/* SPDX-License-Identifier: GPL-2.0-only */
/* The agent: what its parts share. The contract is docs/agent.md. */
#ifndef AGENT_H
#define AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROTOCOL_VERSION 1
#define COMMAND_BYTES 1024	/* the longest command, without its newline */
#define LINE_BYTES 4096		/* the longest answer, with its newline */
#define MAX_ARGUMENTS 64

/*
 * line.c: one JSON object on one line.
 *
 * Strings stop growing LINE_ROOM bytes before the end, so that numbers and
 * short strings can always follow: a line is never cut, only a string is.
 */
#define LINE_ROOM 320

struct line {
	char text[LINE_BYTES];
	size_t used;
};

void line_begin(struct line *line, const char *event);
void line_number(struct line *line, const char *key, uint64_t value);
void line_bool(struct line *line, const char *key, bool value);
/* Returns how many bytes at the end were left out for lack of room. */
size_t line_bytes(struct line *line, const char *key, const char *bytes, size_t count);
void line_string(struct line *line, const char *key, const char *string);
void line_list_begin(struct line *line, const char *key);
/* False, and nothing added, for lack of room. */
bool line_list_add(struct line *line, const char *string);
bool line_list_add_number(struct line *line, uint64_t value);
void line_list_end(struct line *line);
/* Ends the line and writes it; false when nobody can read it any more. */
bool line_send(struct line *line, int fd);

/* kmsg.c: the kernel's log. */
struct record {
	unsigned int level, facility;
	uint64_t seq, us;
	bool continues;
	char caller[24];
	char *text;
	size_t length;
};

struct said;

struct kmsg {
	int fd;			/* -1: this kernel has no /dev/kmsg */
	int out;		/* where log lines go */
	uint64_t id;		/* the command that records are sent for */
	uint64_t next;		/* the sequence number that should come next */
	bool counting;	/* next is known: a gap before it is a loss */
	uint64_t lost;		/* overwritten or left out, not yet said */
	unsigned int worst_level;	/* records with a higher level number are not sent */
	unsigned int records;	/* sent for this command, or this part of it */
	size_t bytes;
	struct said *said;	/* of a command in parts; else NULL */
};

/* What a record says, but for its number and time. */
void line_record(struct line *line, const struct record *record);
void kmsg_open(struct kmsg *log, int out, bool since_boot);
/* Send what has come since; records between two commands belong to the earlier one. */
void kmsg_drain(struct kmsg *log);
void kmsg_step_begin(struct kmsg *log, uint64_t id);
void kmsg_step_end(struct kmsg *log);
/* Of a command in parts: send what is held back. */
void kmsg_flush(struct kmsg *log);
/* In the process that does the command: what the kernel says from here on belongs to this part. */
void kmsg_part(uint64_t id, uint64_t part);

/*
 * said.c: the log of a command in parts. Each text is sent once, and then by its number: reports of failed allocations
 * have most of their lines in common, and a serial line is what a sweep would wait for most.
 */
/* NULL: no memory. */
struct said *said_begin(int out, uint64_t id);
/* Returns how many bytes were sent. */
size_t said_add(struct said *said, const struct record *record);
void said_flush(struct said *said);
void said_part(struct said *said, uint64_t part);
uint64_t said_part_now(const struct said *said);
void said_end(struct said *said);

/* verbs.c, users.c, cpus.c, sleep.c, state.c, smoke.c, selftest.c, leaks.c, disk.c, trace.c, fault.c, sweep.c: what runs in a process of its own. */
struct command {
	uint64_t id;
	const char *verb;
	int argc;
	char *argv[MAX_ARGUMENTS];
};

struct answer {
	struct line *result;	/* verbs add their own keys */
	uint64_t id;
	int fd;			/* for further lines, each one packet */
	const char *modules;	/* the folder of the module files */
	bool emulated;		/* the machine is the agent's alone */
	const char *fail_nth;	/* which allocation of the system call is to fail; or NULL */
	int fault_fd;		/* its task's /proc/…/fail-nth */
	bool same;		/* the state that was looked at is the one that was expected */
};

/* What the agent and the processes that do its commands have in common. */
#define DOING_BYTES 64

struct shared {
	char doing[DOING_BYTES];	/* what such a process is at: told when it is killed */
	pid_t holder;			/* of `hold`, or 0 */
	bool guest;			/* it runs a guest, until it is told to stop */
	bool stop;
	int guest_error;		/* why that ended; 0: it was told to */
	uint64_t rounds;		/* right answers of the guest so far */
	bool last;			/* the line that it sends now is its last one */
	int alive[2];			/* a pipe that nobody writes to: it has an end when the agent does */
};

extern struct shared *shared;

void doing(const char *what);
/* users.c: adds who holds a module. */
void report_users(const char *name, struct line *result);

/* Each returns 0 or a positive errno. */
int verb_load(const struct command *command, struct answer *answer);
int verb_unload(const struct command *command, struct answer *answer);
int verb_param(const struct command *command, struct answer *answer);
int verb_rearm(const struct command *command, struct answer *answer);
int verb_loud(const struct command *command, struct answer *answer);
int verb_modules(const struct command *command, struct answer *answer);
int verb_state(const struct command *command, struct answer *answer);
int verb_detail(const struct command *command, struct answer *answer);
int verb_memory(const struct command *command, struct answer *answer);
int verb_smoke(const struct command *command, struct answer *answer);
int verb_fetch(const struct command *command, struct answer *answer);
int verb_trace(const struct command *command, struct answer *answer);
int verb_sections(const struct command *command, struct answer *answer);
int verb_traced(const struct command *command, struct answer *answer);
int verb_fault(const struct command *command, struct answer *answer);
int verb_sweep(const struct command *command, struct answer *answer);
int verb_look(const struct command *command, struct answer *answer);
int verb_selftest(const struct command *command, struct answer *answer);
int verb_leaks(const struct command *command, struct answer *answer);
int verb_hold(const struct command *command, struct answer *answer);
int verb_release(const struct command *command, struct answer *answer);
int verb_cpu(const struct command *command, struct answer *answer);
int verb_on(const struct command *command, struct answer *answer);
int verb_together(const struct command *command, struct answer *answer);
int verb_suspend(const struct command *command, struct answer *answer);
/* Why these arguments can not be meant, or NULL. */
const char *check_cpu(const struct command *command);
const char *check_on(const struct command *command);
const char *check_together(const struct command *command);
const char *check_suspend(const struct command *command);
const char *check_hold(const struct command *command);
const char *check_smoke(const struct command *command);
const char *check_trace(const struct command *command);
const char *check_fault(const struct command *command);
const char *check_sweep(const struct command *command);
/* Of both: what is to fail, and in whose load or unload. */
const char *check_fault_target(const char *kind, const char *name);
const char *check_selftest(const struct command *command);

/* agent.c: a command that is part of another one: why it can not be meant, or NULL; and doing it. */
const char *check_inner(const struct command *command);
int run_inner(const struct command *command, struct answer *answer);
/*
 * smoke.c: runs a guest that computes for ever, until shared->stop or the agent's end.
 * Writes an int into `told` when it has given its first answer (0) or cannot run (errno).
 */
int run_counting(int told);

/* verbs.c: a module's name, as the kernel has it, from that of its file. */
void module_name(const char *file, char *name, size_t size);

/* fault.c: makes any allocation of a kind one that can fail; then a system call, in which one fails where `answer` says so. */
int fault_set_up(const char *kind, struct answer *answer);
long fault_syscall(struct answer *answer, long number, long a, long b, long c);

/* host.c: what the agent runs on. */
void host_set_up(void);
void host_hello(struct line *line);
uint64_t host_us(void);
/* All of the text at once, into a file that is there. Returns an errno. */
int host_write_file(const char *path, const char *text);
/* Reads at most size - 1 bytes, ends them with NUL; the length, or a negative errno. */
int host_read_file(const char *path, char *buffer, size_t size);

#endif
