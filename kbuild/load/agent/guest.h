/* SPDX-License-Identifier: GPL-2.0-only */
/* The guests' memory, for who prepares it and for their code. Physical; paging leaves it where it is but for GUEST_INPUT. */
#define GUEST_PML4 0x1000		/* the page directory of the 32-bit guest */
#define GUEST_PDPT 0x2000
#define GUEST_PD 0x3000
#define GUEST_PT 0x4000			/* of the first 2 MiB */
#define GUEST_CODE 0x5000
#define GUEST_INPUT 0x6000		/* where the code reads it */
#define GUEST_WINDOW_PT 0x7000		/* the page table of GUEST_WINDOW */
#define GUEST_IDT 0x8000
#define GUEST_REMAPPED 0x9000		/* where the page tables put the page at GUEST_INPUT */
#define GUEST_GDT 0xa000
#define GUEST_STACK_END 0xc000
#define GUEST_BUFFER 0xc000		/* the guest's own, two pages */
#define GUEST_WORD 0xe000		/* what user space says while the guest runs */
#define GUEST_DATA 0x10000		/* DATA_PAGES pages, which a guest maps by itself */
#define GUEST_MEMORY 0x20000
#define GUEST_ALIASED 0x400000		/* a page and a memory slot of its own */
#define GUEST_MMIO 0x800000		/* nothing is there: user space answers */
#define GUEST_LAPIC 0xfee00000

#define GUEST_WINDOW 0x200000		/* virtual; 512 pages, mapped by GUEST_WINDOW_PT */
#define ALIASES 256			/* pages of the window that are all GUEST_ALIASED */
#define DIRTY_ROUNDS 16
#define DIRTY_STRIDE 17			/* from one alias that is written to the next */
#define DATA_PAGES 8

#define CODE_SELECTOR 8
#define DATA_SELECTOR 16

/* Interrupts: one of this many vectors, each with a stub of STUB_BYTES. */
#define FIRST_VECTOR 32
#define VECTORS 64
#define STUB_BYTES 8
#define INTERRUPTS 3

/* I/O ports. */
#define GUEST_PORT 0x10			/* takes the answer */
#define GUEST_PAUSE 0x11		/* user space is to do something */
#define GUEST_END 0x12			/* in place of HLT, which KVM keeps to itself where it has the local APIC */
#define GUEST_STREAM 0x13		/* gives the input, and what follows from it */

/* CPUID leaves whose values come from the input; the second has two subleaves. */
#define CPUID_LEAF 0x80000002
#define CPUID_INDEXED_LEAF 0x40000100
#define CPUID_INDEX 5

/* two-vcpus. */
#define GUEST_TURN GUEST_BUFFER
#define GUEST_BALL (GUEST_BUFFER + 64)
#define TURNS 8

/* ipi: what the other vCPU runs, where SIPI's vector says, and the word that it hands over. */
#define GUEST_STARTUP 0xf000
#define GUEST_HANDED (GUEST_BUFFER + 128)

/* registers: 64-bit values that are loaded, and the same read back. */
#define GUEST_TABLE GUEST_BUFFER
#define GUEST_SAVED (GUEST_BUFFER + 0x800)
#define SAVED_GENERAL 16		/* rax to r15 as they are numbered */
#define SAVED_SSE 32			/* xmm0 to xmm15, two each */
#define SAVED_DEBUG 4			/* dr0 to dr3 */
#define SAVED_MSRS 4
#define SAVED_COUNT (SAVED_GENERAL + SAVED_SSE + SAVED_DEBUG + SAVED_MSRS + 2)	/* and cr2, st0 */
