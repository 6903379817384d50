/* SPDX-License-Identifier: GPL-2.0-only */
/* What the 64-bit guests' code shares. MULTIPLIER is in r8 from START on; r9 is scratch. */
#include "guest.h"

#define MULTIPLIER 0x9e3779b97f4a7c15

	.macro GUEST name
	.globl guest_\name, guest_\name\()_end
	.p2align 3
guest_\name:
	.endm

	.macro END name
guest_\name\()_end:
	.endm

	/* The input is in rbx, where most guests keep what they compute. */
	.macro START
	movabsq	$MULTIPLIER, %r8
	movq	GUEST_INPUT, %rbx
	.endm

	/* to = to * MULTIPLIER + rotate_left(from, 23) */
	.macro MIX to, from
	imulq	%r8, \to
	movq	\from, %r9
	rolq	$23, %r9
	addq	%r9, \to
	.endm

	/* rbx */
	.macro ANSWER
	movl	%ebx, %eax
	outl	%eax, $GUEST_PORT
	movq	%rbx, %rax
	shrq	$32, %rax
	outl	%eax, $GUEST_PORT
	.endm

	/* What the vectors' stubs have pushed is in rax, rbx takes it in, and ebp counts. */
	.macro HANDLE_INTERRUPT
	popq	%rax
	MIX	%rbx, %rax
	decl	%ebp
	.endm

	/*
	 * After STI the next instruction is done before any interrupt, so that none
	 * is lost in front of HLT. QEMU's SVM (7.2) forgets that when the host's own
	 * interrupt comes in between: this one then came early, and there is nothing
	 * to sleep for.
	 */
	.macro SKIP_HLT
	movq	(%rsp), %rax
	cmpb	$0xf4, (%rax)
	jne	skip\@
	incq	(%rsp)
skip\@:
	.endm

	/* The IDT points here: the vector is pushed, and all go the same way. */
	.macro STUBS to
	.p2align 3
	vector = FIRST_VECTOR
	.rept VECTORS
	pushq	$vector
	jmp	\to
	.p2align 3
	vector = vector + 1
	.endr
	.endm
