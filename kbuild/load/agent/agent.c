// SPDX-License-Identifier: GPL-2.0-only
/*
 * The agent: loads and unloads kernel modules on behalf of a host that talks to
 * it over a line. PID 1 in an emulator; with --stdio a plain process of root's.
 * The contract is docs/agent.md.
 */
#define _GNU_SOURCE		/* pipe2, O_DIRECT */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define CHECK_BYTES 9		/* eight digits and a blank */
/* The host writes a line in one go: after a pause inside, the rest has been lost. */
#define PAUSE_MS 500
/* A part of a command that takes as long may never end: what there is is told. */
#define HELD_MS 200

struct agent {
	int in, out;
	const char *modules;
	bool emulated;
	struct kmsg log;
	uint64_t done;		/* the last command that was carried out */
	/* The command line that is being read. */
	char input[COMMAND_BYTES + 1];
	size_t used;
	bool too_long;
};

struct verb {
	const char *name;
	int min_args, max_args;
	int (*run)(const struct command *command, struct answer *answer);
	/* Why these arguments can not be meant, or NULL. */
	const char *(*check)(const struct command *command);
};

/* Arguments become parts of paths. */
static const char *check_names(const struct command *command)
{
	for (int i = 0; i < command->argc; i++)
		if (strchr(command->argv[i], '/') || command->argv[i][0] == '.')
			return "not a plain name";
	return NULL;
}

static const char *check_load(const struct command *command)
{
	struct command file = { .argc = 1, .argv = { command->argv[0] } };

	return check_names(&file);
}

static const struct verb verbs[] = {
	{ "load", 1, MAX_ARGUMENTS, verb_load, check_load },
	{ "unload", 1, 1, verb_unload, check_names },
	{ "memory", 0, 0, verb_memory, check_names },
	{ "hold", 1, 1, verb_hold, check_hold },
	{ "release", 0, 0, verb_release, check_names },
	{ "param", 2, 2, verb_param, check_names },
	{ "rearm", 0, 0, verb_rearm, check_names },
	{ "loud", 0, 0, verb_loud, check_names },
	{ "modules", 0, 0, verb_modules, check_names },
	{ "state", 0, 1, verb_state, check_names },
	{ "detail", 0, 0, verb_detail, check_names },
	{ "smoke", 2, 2, verb_smoke, check_smoke },
	{ "fetch", 0, 0, verb_fetch, check_names },
	{ "trace", 1, 2, verb_trace, check_trace },
	{ "sections", 1, 1, verb_sections, check_names },
	{ "traced", 2, 2, verb_traced, check_trace },
	{ "fault", 4, MAX_ARGUMENTS, verb_fault, check_fault },
	{ "sweep", 5, MAX_ARGUMENTS, verb_sweep, check_sweep },
	{ "selftest", 2, 2, verb_selftest, check_selftest },
	{ "leaks", 0, 0, verb_leaks, check_names },
	{ "look", 0, 0, verb_look, check_names },
	{ "cpu", 2, 2, verb_cpu, check_cpu },
	{ "on", 2, MAX_ARGUMENTS, verb_on, check_on },
	{ "together", 5, MAX_ARGUMENTS, verb_together, check_together },
	{ "suspend", 1, 1, verb_suspend, check_suspend },
	{ "poweroff", 0, 0, NULL, check_names },
	{ "restart", 0, 0, NULL, check_names },
};

static const char *find_verb(const struct command *command, const struct verb **verb)
{
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
		if (strcmp(command->verb, verbs[i].name))
			continue;
		*verb = &verbs[i];
		if (command->argc < verbs[i].min_args || command->argc > verbs[i].max_args)
			return "not the arguments of this verb";
		return verbs[i].check(command);
	}
	return "no such verb";
}

const char *check_inner(const struct command *command)
{
	const struct verb *verb = NULL;
	const char *why = find_verb(command, &verb);

	if (!why && (!verb->run || verb->run == verb_on || verb->run == verb_together))
		return "no verb inside another one";
	return why;
}

int run_inner(const struct command *command, struct answer *answer)
{
	const struct verb *verb = NULL;

	return find_verb(command, &verb) ? EINVAL : verb->run(command, answer);
}

static int hex_digit(char c)
{
	const char *digits = "0123456789abcdef", *at = strchr(digits, c | 0x20);

	return c && at ? (int)(at - digits) : -1;
}

/* %XX, in place. */
static const char *unescape(char *text)
{
	char *to = text;

	for (; *text; text++) {
		if (*text == '%') {
			int high = hex_digit(text[1]), low = high < 0 ? -1 : hex_digit(text[2]);

			if (low < 0 || !(high | low))
				return "a % without two hexadecimal digits, or %00";
			*to++ = high << 4 | low;
			text += 2;
		} else {
			*to++ = *text;
		}
	}
	*to = 0;
	return NULL;
}

/*
 * "CHECK REST": FNV-1a, 32 bits, of REST. A serial port drops bytes when the
 * kernel keeps interrupts off for longer than its FIFO lasts (at most 1.4 ms
 * at 115,200 baud). Without this, a virtual machine would be given another
 * number than the host wrote, and its answer be held against KVM.
 */
static bool is_intact(const char *text, size_t length)
{
	char check[CHECK_BYTES + 1];
	uint32_t value = 0x811c9dc5;

	if (length < CHECK_BYTES)
		return false;
	for (size_t i = CHECK_BYTES; i < length; i++)
		value = (value ^ (unsigned char)text[i]) * 0x01000193;
	snprintf(check, sizeof(check), "%08x ", value);
	return !memcmp(text, check, CHECK_BYTES);
}

/* Cuts "ID VERB ARG…" into words. Returns why it can not be read, or NULL. */
static const char *parse(char *text, size_t length, struct command *command, const struct verb **verb)
{
	char *next = text, *end;

	memset(command, 0, sizeof(*command));
	for (size_t i = 0; i < length; i++)
		if (text[i] < ' ' || text[i] > '~')
			return "a byte that is not printable ASCII";
	if (*text < '0' || *text > '9')
		return "no number in front";
	errno = 0;
	command->id = strtoull(text, &end, 10);
	if (errno || !command->id || command->id > INT64_MAX || *end != ' ') {
		command->id = 0;
		return "no number in front";
	}
	next = end + 1;
	command->verb = strsep(&next, " ");
	while (next) {
		char *argument = strsep(&next, " ");
		const char *why = unescape(argument);

		if (why)
			return why;
		if (!*argument)
			return "an empty argument";
		if (command->argc == MAX_ARGUMENTS)
			return "too many arguments";
		command->argv[command->argc++] = argument;
	}
	return find_verb(command, verb);
}

static void refuse(const struct agent *agent, uint64_t id, const char *why)
{
	struct line line;

	line_begin(&line, "refused");
	line_number(&line, "id", id);
	line_string(&line, "why", why);
	line_send(&line, agent->out);
}

struct shared *shared;

void doing(const char *what)
{
	snprintf(shared->doing, sizeof(shared->doing), "%s", what);
}

/* The process that does the command. Each of its lines is one packet in the pipe, the last one is the result. */
static _Noreturn void work(const struct agent *agent, const struct command *command, const struct verb *verb, int fd)
{
	struct line result;
	struct answer answer = {
		.result = &result, .id = command->id, .fd = fd, .modules = agent->modules, .emulated = agent->emulated,
	};
	uint64_t start;
	int error;

	line_begin(&result, "result");
	line_number(&result, "id", command->id);
	start = host_us();
	error = verb->run(command, &answer);
	line_number(&result, "us", host_us() - start);
	line_number(&result, "errno", error);
	shared->last = true;
	line_send(&result, fd);
	_exit(0);
}

/* Reaps orphans too: they are PID 1's. Returns the signal that ended the process, or 0. */
static int wait_for(pid_t pid)
{
	int status = 0;
	pid_t ended;

	do
		ended = waitpid(-1, &status, 0);
	while (ended != pid && (ended > 0 || errno == EINTR));
	return ended == pid && WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

/* What is not the result need not wait any longer. */
static void send_held(const struct agent *agent, struct line *held)
{
	if (held->used && !shared->last)
		line_send(held, agent->out);
	if (!shared->last)
		held->used = 0;
}

/*
 * Passes on what the process says and what the kernel says meanwhile. The
 * latest line is held back: if it is the result, the log comes before it.
 * Returns whether it is.
 */
static bool relay(struct agent *agent, int fd, struct line *held)
{
	struct pollfd polls[] = {
		{ .fd = fd, .events = POLLIN },
		{ .fd = agent->log.fd, .events = POLLIN },
	};
	struct line next;

	held->used = 0;
	for (;;) {
		int ready = poll(polls, 2, agent->log.said ? HELD_MS : -1);
		ssize_t n;

		if (ready < 0)
			continue;
		if (polls[1].revents)
			kmsg_drain(&agent->log);
		if (ready == 0) {
			kmsg_flush(&agent->log);
			send_held(agent, held);
		}
		if (!polls[0].revents)
			continue;
		n = read(fd, next.text, sizeof(next.text));
		if (n <= 0)
			return held->used && shared->last;
		if (held->used)
			line_send(held, agent->out);
		/* line_send() ends the line again. */
		next.used = n - strlen("}\n");
		*held = next;
	}
}

static void run(struct agent *agent, const struct command *command, const struct verb *verb)
{
	struct line line;
	int fds[2], signal;
	bool answered;
	pid_t pid;

	if (pipe2(fds, O_DIRECT | O_CLOEXEC)) {
		refuse(agent, command->id, "no pipe: out of memory?");
		return;
	}
	if (verb->run == verb_sweep) {
		agent->log.said = said_begin(agent->out, command->id);
		if (!agent->log.said) {
			refuse(agent, command->id, "out of memory");
			close(fds[0]);
			close(fds[1]);
			return;
		}
	}
	kmsg_step_begin(&agent->log, command->id);
	doing("");
	shared->last = false;
	pid = fork();
	if (pid == 0) {
		close(fds[0]);
		work(agent, command, verb, fds[1]);
	}
	close(fds[1]);
	answered = relay(agent, fds[0], &line);
	close(fds[0]);
	signal = pid > 0 ? wait_for(pid) : 0;
	kmsg_step_end(&agent->log);
	said_end(agent->log.said);
	agent->log.said = NULL;
	if (signal || !answered) {
		send_held(agent, &line);
		line_begin(&line, "died");
		line_number(&line, "id", command->id);
		line_number(&line, "signal", signal);
		if (*shared->doing)
			line_string(&line, "doing", shared->doing);
	}
	line_send(&line, agent->out);
}

static _Noreturn void power_off(struct agent *agent, uint64_t id, int how)
{
	struct line line;

	kmsg_step_begin(&agent->log, id);
	kmsg_step_end(&agent->log);
	line_begin(&line, "bye");
	line_send(&line, agent->out);
	/* An emulator forgets what is still in its serial port when it ends. */
	tcdrain(agent->out);
	if (getpid() == 1)
		reboot(how);
	exit(0);
}

static void obey(struct agent *agent, char *text, size_t length)
{
	const struct verb *verb = NULL;
	struct command command;
	const char *why;

	if (!is_intact(text, length)) {
		refuse(agent, 0, "damaged");
		return;
	}
	why = parse(text + CHECK_BYTES, length - CHECK_BYTES, &command, &verb);
	if (why) {
		refuse(agent, command.id, why);
		return;
	}
	/* The host sent it again because it took something else for a loss of it. */
	if (command.id == agent->done)
		return;
	agent->done = command.id;
	if (!verb->run)
		power_off(agent, command.id, strcmp(verb->name, "restart") ? RB_POWER_OFF : RB_AUTOBOOT);
	else
		run(agent, &command, verb);
}

/* False: the other side is gone. */
static bool take_input(struct agent *agent)
{
	char bytes[256];
	ssize_t n = read(agent->in, bytes, sizeof(bytes));

	if (n <= 0)
		return n < 0 && (errno == EINTR || errno == EAGAIN);
	for (ssize_t i = 0; i < n; i++) {
		/* Bochs' serial port adds some behind a line with kernels from 6.12 on; no command has one. */
		if (!bytes[i])
			continue;
		if (bytes[i] != '\n') {
			if (agent->used == COMMAND_BYTES)
				agent->too_long = true;
			else
				agent->input[agent->used++] = bytes[i];
			continue;
		}
		agent->input[agent->used] = 0;
		if (agent->too_long)
			refuse(agent, 0, "longer than 1024 bytes");
		else
			obey(agent, agent->input, agent->used);
		agent->used = 0;
		agent->too_long = false;
	}
	return true;
}

/* Without O_NONBLOCK, open() would wait for a carrier. */
static int open_line(const char *path)
{
	int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	struct termios mode;

	if (fd < 0) {
		fprintf(stderr, "agent: %s: %s\n", path, strerror(errno));
		return -1;
	}
	if (!tcgetattr(fd, &mode)) {
		cfmakeraw(&mode);
		cfsetspeed(&mode, B115200);
		mode.c_cflag |= CLOCAL | CREAD;
		mode.c_cflag &= ~(HUPCL | CRTSCTS);
		mode.c_cc[VMIN] = 1;
		mode.c_cc[VTIME] = 0;
		tcsetattr(fd, TCSANOW, &mode);
	}
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	return fd;
}

static void serve(struct agent *agent)
{
	struct line line;

	signal(SIGPIPE, SIG_IGN);
	host_hello(&line);
	line_send(&line, agent->out);
	kmsg_open(&agent->log, agent->out, getpid() == 1);
	for (;;) {
		struct pollfd polls[] = {
			{ .fd = agent->in, .events = POLLIN },
			{ .fd = agent->log.fd, .events = POLLIN },
		};

		bool inside = agent->used || agent->too_long;
		int ready = poll(polls, 2, inside ? PAUSE_MS : -1);

		if (ready < 0)
			continue;
		if (ready == 0) {
			refuse(agent, 0, "cut");
			agent->used = 0;
			agent->too_long = false;
		}
		if (polls[1].revents)
			kmsg_drain(&agent->log);
		if (polls[0].revents && !take_input(agent))
			return;
	}
}

int main(int argc, char **argv)
{
	static struct agent agent = { .modules = "/modules" };
	const char *path = "/dev/ttyS1";

	/* The kernel hands what it does not know of its own command line to PID 1: leave that alone. */
	for (int i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "--stdio"))
			path = NULL;
		else if (!strcmp(argv[i], "--line") && i + 1 < argc)
			path = argv[++i];
		else if (!strcmp(argv[i], "--modules") && i + 1 < argc)
			agent.modules = argv[++i];
	}
	if (getpid() == 1)
		host_set_up();
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED || pipe2(shared->alive, O_CLOEXEC)) {
		fprintf(stderr, "agent: %s\n", strerror(errno));
		return 1;
	}
	agent.emulated = getpid() == 1 && path;
	if (path) {
		agent.in = agent.out = open_line(path);
		if (agent.in < 0 && getpid() != 1)
			return 1;
	} else {
		agent.in = STDIN_FILENO;
		agent.out = STDOUT_FILENO;
	}
	if (agent.in >= 0)
		serve(&agent);
	/* Nobody is there to talk to; if PID 1 ended, the kernel would panic and seem to blame. */
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	return 0;
}
