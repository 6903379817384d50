// SPDX-License-Identifier: GPL-2.0-only
/*
 * Module files from the emulator's disk: the slave of the first ATA channel.
 *
 * Read by the agent itself, port by port (ATA/ATAPI-6, PIO data-in, 28-bit),
 * so that the kernel under test needs no driver. The layout is docs/agent.md.
 */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/stat.h>
#include <unistd.h>

#define ATA_DATA 0x1f0
#define ATA_ERROR 0x1f1
#define ATA_COUNT 0x1f2
#define ATA_LBA_LOW 0x1f3
#define ATA_LBA_MID 0x1f4
#define ATA_LBA_HIGH 0x1f5
#define ATA_DEVICE 0x1f6
#define ATA_COMMAND 0x1f7	/* written; read, it is the status */
#define ATA_CONTROL 0x3f6	/* written; read, it is the status, and nothing is acknowledged */

#define DEVICE_MASTER 0xa0
#define DEVICE_SLAVE_LBA 0xf0
#define STATUS_ERROR 0x01
#define STATUS_DATA 0x08
#define STATUS_FAULT 0x20
#define STATUS_BUSY 0x80
#define STATUS_NO_BUS 0xff	/* nothing drives the lines */
#define CONTROL_NO_INTERRUPT 0x02
#define READ_SECTORS 0x20
#define READ_MULTIPLE 0xc4
#define SET_MULTIPLE 0xc6

#define SECTOR 512
#define BLOCK 16		/* sectors; what any drive that has READ_MULTIPLE can do */
#define MOST_SECTORS 256	/* of one command, which calls them 0 */
#define TABLE_SECTORS 8
#define DRIVE_US 5000000

static int wait_for_data(void)
{
	uint64_t until = host_us() + DRIVE_US;

	/* The status is valid 400 ns after a command: four reads of a port take as long. */
	for (int i = 0; i < 4; i++)
		inb(ATA_CONTROL);
	do {
		unsigned char status = inb(ATA_COMMAND);

		if (status == STATUS_NO_BUS || !status)
			return ENODEV;
		if (status & STATUS_BUSY)
			continue;
		if (status & (STATUS_ERROR | STATUS_FAULT))
			return EIO;
		if (status & STATUS_DATA)
			return 0;
	} while (host_us() < until);
	return ETIMEDOUT;
}

/*
 * How many sectors come at a time. QEMU asks its file for each block, and waits until another thread of it has read that:
 * on a busy machine a millisecond each, and the modules are 8,000 sectors.
 */
static uint32_t set_block(void)
{
	uint64_t until = host_us() + DRIVE_US;
	unsigned char status;

	outb(DEVICE_SLAVE_LBA, ATA_DEVICE);
	outb(BLOCK, ATA_COUNT);
	outb(SET_MULTIPLE, ATA_COMMAND);
	for (int i = 0; i < 4; i++)
		inb(ATA_CONTROL);
	do
		status = inb(ATA_COMMAND);
	while (status != STATUS_NO_BUS && (status & STATUS_BUSY) && host_us() < until);
	return status & (STATUS_BUSY | STATUS_ERROR | STATUS_FAULT) ? 1 : BLOCK;
}

static int read_sectors(uint32_t first, uint32_t count, char *buffer)
{
	uint32_t block = set_block();

	while (count) {
		uint32_t now = count < MOST_SECTORS ? count : MOST_SECTORS;

		outb(DEVICE_SLAVE_LBA | (first >> 24 & 0xf), ATA_DEVICE);
		outb(now & 0xff, ATA_COUNT);
		outb(first & 0xff, ATA_LBA_LOW);
		outb(first >> 8 & 0xff, ATA_LBA_MID);
		outb(first >> 16 & 0xff, ATA_LBA_HIGH);
		outb(block > 1 ? READ_MULTIPLE : READ_SECTORS, ATA_COMMAND);
		first += now;
		count -= now;
		while (now) {
			uint32_t here = now < block ? now : block;
			int error = wait_for_data();

			if (error)
				return error;
			insl(ATA_DATA, buffer, here * SECTOR / 4);
			buffer += here * SECTOR;
			now -= here;
		}
	}
	return 0;
}

static int write_file(const char *path, const char *bytes, size_t size)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int error = 0;

	if (fd < 0)
		return errno;
	while (size && !error) {
		ssize_t n = write(fd, bytes, size);

		if (n < 0 && errno != EINTR)
			error = errno;
		if (n > 0) {
			bytes += n;
			size -= n;
		}
	}
	close(fd);
	return error;
}

static int fetch_file(uint32_t start, size_t size, uint64_t check, const char *path)
{
	uint32_t sectors = (size + SECTOR - 1) / SECTOR;
	uint64_t value = 0xcbf29ce484222325;
	char *bytes = malloc((size_t)sectors * SECTOR);
	int error;

	if (!bytes)
		return ENOMEM;
	error = read_sectors(start, sectors, bytes);
	/* Eight bytes at once: an emulated CPU takes its time for each. */
	for (size_t i = 0; !error && i < (size_t)sectors * SECTOR; i += 8) {
		uint64_t word;

		memcpy(&word, bytes + i, 8);
		value = (value ^ word) * 0x100000001b3;
	}
	if (!error && value != check)
		error = EBADMSG;
	if (!error)
		error = write_file(path, bytes, size);
	free(bytes);
	return error;
}

static int fetch_files(const char *folder)
{
	char table[TABLE_SECTORS * SECTOR + 1], path[COMMAND_BYTES], name[256], *line, *next = table;
	int error = read_sectors(0, TABLE_SECTORS, table);

	if (error)
		return error;
	table[TABLE_SECTORS * SECTOR] = 0;
	line = strsep(&next, "\n");
	if (strcmp(line, "kvm-kbuild modules"))
		return ENOENT;
	while ((line = strsep(&next, "\n"))) {
		uint32_t start, size;
		uint64_t check;

		if (!strcmp(line, "end"))
			return 0;
		if (sscanf(line, "%" SCNu32 " %" SCNu32 " %" SCNx64 " %255[^/ ]", &start, &size, &check, name) != 4)
			break;
		snprintf(path, sizeof(path), "%s/%s", folder, name);
		error = fetch_file(start, size, check, path);
		if (error)
			return error;
	}
	return EBADMSG;
}

int verb_fetch(const struct command *command, struct answer *answer)
{
	int error;

	(void)command;
	/* Never the drives of a machine that others live on. */
	if (!answer->emulated)
		return EPERM;
	if (ioperm(ATA_DATA, 8, 1) || ioperm(ATA_CONTROL, 1, 1))
		return errno;
	outb(CONTROL_NO_INTERRUPT, ATA_CONTROL);
	outb(DEVICE_SLAVE_LBA, ATA_DEVICE);
	mkdir(answer->modules, 0755);
	error = fetch_files(answer->modules);
	outb(DEVICE_MASTER, ATA_DEVICE);
	outb(0, ATA_CONTROL);
	return error;
}
