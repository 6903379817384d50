/* SPDX-License-Identifier: GPL-2.0-only */
/* Guests for KVM's MMU: page faults that belong to the guest, and one page at many addresses. */
#include "guest_macros.h"

	.section .rodata
	.code64

	.set ROUNDS, 2 * DATA_PAGES

	/*
	 * Each round reads through an address that is not mapped, and the handler
	 * maps it read-only; then writes there, and the handler makes it writable.
	 * Error codes, CR2 and the accessed and dirty bits are part of the answer.
	 */
	GUEST page_faults
	START
	movl	$ROUNDS, %ebp
1:	movl	%ebx, %edi
	andl	$511, %edi
	leal	GUEST_WINDOW_PT(, %rdi, 8), %r12d
	shll	$12, %edi
	addl	$GUEST_WINDOW, %edi
	movl	%ebp, %r11d
	andl	$(DATA_PAGES - 1), %r11d
	leal	(%rdi, %r11, 8), %edi
	shll	$12, %r11d
	addl	$(GUEST_DATA + 1), %r11d	/* present */
	movq	(%rdi), %rax
	MIX	%rbx, %rax
	movzbl	(%r12), %eax
	MIX	%rbx, %rax
	movq	%rbx, (%rdi)
	movzbl	(%r12), %eax
	MIX	%rbx, %rax
	movq	$0, (%r12)
	invlpg	(%rdi)
	decl	%ebp
	jnz	1b
	ANSWER
	hlt
	.p2align 3
	.globl guest_page_faults_handler
guest_page_faults_handler:
	popq	%rax
	MIX	%rbx, %rax
	movq	%cr2, %rcx
	MIX	%rbx, %rcx
	testl	$1, %eax
	jnz	2f
	movq	%r11, (%r12)
	iretq
2:	orb	$2, (%r12)
	invlpg	(%rcx)
	iretq
	END page_faults

	/* Each alias is another word of the page, so that none can answer for another. */
	.macro EACH_ALIAS
	movl	$GUEST_WINDOW, %edi
	movl	$ALIASES, %ecx
	.endm

	.macro NEXT_ALIAS to
	addl	$(4096 + 8), %edi
	decl	%ecx
	jnz	\to
	.endm

	GUEST aliases
	START
	EACH_ALIAS
1:	MIX	%rbx, (%rdi)
	movq	%rbx, (%rdi)
	NEXT_ALIAS 1b
	outb	%al, $GUEST_PAUSE		/* dirty logging is switched on */
	movl	$GUEST_WINDOW, %edi
	movl	$DIRTY_ROUNDS, %ecx
2:	movq	%rbx, (%rdi)
	outb	%al, $GUEST_PAUSE		/* the log is read, and thereby cleared */
	MIX	%rbx, GUEST_WORD
	addl	$(DIRTY_STRIDE * (4096 + 8)), %edi
	decl	%ecx
	jnz	2b
	outb	%al, $GUEST_PAUSE		/* user space maps another page in its place */
	EACH_ALIAS
3:	MIX	%rbx, (%rdi)
	NEXT_ALIAS 3b
	outb	%al, $GUEST_PAUSE		/* the slot is deleted, and made anew with the first page */
	EACH_ALIAS
4:	MIX	%rbx, (%rdi)
	NEXT_ALIAS 4b
	ANSWER
	hlt
	END aliases

	.section .note.GNU-stack, "", @progbits
