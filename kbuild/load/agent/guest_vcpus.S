/* SPDX-License-Identifier: GPL-2.0-only */
/* Guests for vCPUs: one whose state moves to another virtual machine, and two that need each other. */
#include "guest_macros.h"

	.section .rodata
	.code64

	.set MSR_LSTAR, 0xc0000082
	.set MSR_FS_BASE, 0xc0000100
	.set MSR_GS_BASE, 0xc0000101
	.set MSR_KERNEL_GS_BASE, 0xc0000102

	/* The places in both tables, in words. */
	.set SSE, SAVED_GENERAL
	.set DEBUG, SSE + SAVED_SSE
	.set MSRS, DEBUG + SAVED_DEBUG
	.set CR2, MSRS + SAVED_MSRS
	.set ST0, CR2 + 1

	.macro FOR_EACH_GENERAL do
	\do	%rax, 0
	\do	%rcx, 1
	\do	%rdx, 2
	\do	%rbx, 3
	\do	%rsp, 4
	\do	%rbp, 5
	\do	%rsi, 6
	\do	%rdi, 7
	\do	%r8, 8
	\do	%r9, 9
	\do	%r10, 10
	\do	%r11, 11
	\do	%r12, 12
	\do	%r13, 13
	\do	%r14, 14
	\do	%r15, 15
	.endm

	.macro LOAD_GENERAL register, place
	movq	GUEST_TABLE + 8 * \place, \register
	.endm

	.macro SAVE_GENERAL register, place
	movq	\register, GUEST_SAVED + 8 * \place
	.endm

	.macro LOAD_MSR number, place
	movl	GUEST_TABLE + 8 * (MSRS + \place), %eax
	movl	GUEST_TABLE + 8 * (MSRS + \place) + 4, %edx
	movl	$\number, %ecx
	wrmsr
	.endm

	.macro SAVE_MSR number, place
	movl	$\number, %ecx
	rdmsr
	movl	%eax, GUEST_SAVED + 8 * (MSRS + \place)
	movl	%edx, GUEST_SAVED + 8 * (MSRS + \place) + 4
	.endm

	GUEST registers
	START
	/* The table follows from the input; each value is a canonical address too. */
	xorl	%ecx, %ecx
1:	MIX	%rbx, %rcx
	movq	%rbx, %rax
	shrq	$18, %rax
	movq	%rax, GUEST_TABLE(, %rcx, 8)
	incl	%ecx
	cmpl	$SAVED_COUNT, %ecx
	jne	1b
	LOAD_MSR MSR_LSTAR, 0
	LOAD_MSR MSR_FS_BASE, 1
	LOAD_MSR MSR_GS_BASE, 2
	LOAD_MSR MSR_KERNEL_GS_BASE, 3
	.irp n, 0, 1, 2, 3
	movq	GUEST_TABLE + 8 * (DEBUG + \n), %rax
	movq	%rax, %dr\n
	.endr
	movq	GUEST_TABLE + 8 * CR2, %rax
	movq	%rax, %cr2
	fninit
	fildll	GUEST_TABLE + 8 * ST0
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu	GUEST_TABLE + 8 * SSE + 16 * \n, %xmm\n
	.endr
	FOR_EACH_GENERAL LOAD_GENERAL
	outb	%al, $GUEST_PAUSE
	/* In another virtual machine. */
	FOR_EACH_GENERAL SAVE_GENERAL
	.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	movdqu	%xmm\n, GUEST_SAVED + 8 * SSE + 16 * \n
	.endr
	fistpll	GUEST_SAVED + 8 * ST0
	movq	%cr2, %rax
	movq	%rax, GUEST_SAVED + 8 * CR2
	.irp n, 0, 1, 2, 3
	movq	%dr\n, %rax
	movq	%rax, GUEST_SAVED + 8 * (DEBUG + \n)
	.endr
	SAVE_MSR MSR_LSTAR, 0
	SAVE_MSR MSR_FS_BASE, 1
	SAVE_MSR MSR_GS_BASE, 2
	SAVE_MSR MSR_KERNEL_GS_BASE, 3
	START
	xorl	%ecx, %ecx
2:	movq	GUEST_SAVED(, %rcx, 8), %rax
	MIX	%rbx, %rax
	incl	%ecx
	cmpl	$SAVED_COUNT, %ecx
	jne	2b
	ANSWER
	hlt
	END registers

	/* rdi is this vCPU's number. They take turns; each needs what the other one has computed. */
	GUEST two_vcpus
	START
	xorl	%ecx, %ecx
1:	movl	GUEST_TURN, %ecx
	cmpl	$TURNS, %ecx
	jae	3f
	movl	%ecx, %edx
	andl	$1, %edx
	cmpl	%edi, %edx
	je	2f
	pause
	jmp	1b
2:	leal	1(%rdi, %rcx, 2), %edx
	MIX	%rbx, GUEST_BALL
	MIX	%rbx, %rdx
	movq	%rbx, GUEST_BALL
	lock incl GUEST_TURN
	jmp	1b
3:	testl	%edi, %edi
	jnz	4f
	movq	GUEST_BALL, %rbx
	ANSWER
	hlt
4:	pause					/* user space stops it */
	jmp	4b
	END two_vcpus

	.set LAPIC_EOI, 0xb0
	.set LAPIC_SPURIOUS, 0xf0
	.set LAPIC_ICR, 0x300
	.set LAPIC_ICR_HIGH, 0x310
	.set ICR_INIT, 0x4500
	.set ICR_STARTUP, 0x4600
	.set MSR_APIC_BASE, 0x1b
	.set X2APIC_ENABLED, 0xc00
	.set MSR_X2APIC_ICR, 0x830

	/* Starts the other vCPU, sleeps until that one wakes it, and takes in vector and word. */
	GUEST ipi
	cli
	START
	movq	%rbx, GUEST_BALL
	movl	$GUEST_WINDOW, %esi
	movl	$0x1ff, LAPIC_SPURIOUS(%rsi)	/* enables it */
	movl	$1 << 24, LAPIC_ICR_HIGH(%rsi)	/* to APIC 1 */
	movl	$ICR_INIT, LAPIC_ICR(%rsi)
	movl	$(ICR_STARTUP | GUEST_STARTUP >> 12), LAPIC_ICR(%rsi)
	movl	$1, %ebp
1:	sti
	hlt
	cli
	testl	%ebp, %ebp
	jnz	1b
	MIX	%rbx, GUEST_HANDED
	ANSWER
	outb	%al, $GUEST_END
2:	HANDLE_INTERRUPT
	movl	$0, LAPIC_EOI(%rsi)
	SKIP_HLT
	iretq
	.globl guest_ipi_stubs
	STUBS	2b
guest_ipi_stubs = . - VECTORS * STUB_BYTES
	END ipi

	/* In real mode, as SIPI starts it. Its own local APIC is out of reach but as x2APIC, by MSRs. */
	.code16
	GUEST startup
	xorw	%ax, %ax
	movw	%ax, %ds
	imull	$0x9e3779b9, GUEST_BALL, %ebx
	movl	GUEST_BALL + 4, %eax
	roll	$7, %eax
	addl	%eax, %ebx
	movl	%ebx, GUEST_HANDED
	movl	$MSR_APIC_BASE, %ecx
	rdmsr
	orl	$X2APIC_ENABLED, %eax
	wrmsr
	movl	$MSR_X2APIC_ICR, %ecx
	movl	%ebx, %eax
	andl	$(VECTORS - 1), %eax
	addl	$FIRST_VECTOR, %eax
	xorl	%edx, %edx			/* to APIC 0 */
	wrmsr
1:	hlt					/* user space stops it */
	jmp	1b
	END startup

	.section .note.GNU-stack, "", @progbits
