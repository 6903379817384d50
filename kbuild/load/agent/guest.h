/* SPDX-License-Identifier: GPL-2.0-only */
/* The guests' memory, for smoke.c and guest.S. All physical, but for GUEST_INPUT under paging. */
#define GUEST_PML4 0x1000
#define GUEST_PDPT 0x2000
#define GUEST_PD 0x3000
#define GUEST_PT 0x4000
#define GUEST_CODE 0x5000
#define GUEST_INPUT 0x6000	/* where the code reads it */
#define GUEST_REMAPPED 0x9000	/* where the page table of the 64-bit guest puts that page */
#define GUEST_MEMORY 0x10000
#define GUEST_PORT 0x10		/* the answer's I/O port */
