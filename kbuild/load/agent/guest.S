/* SPDX-License-Identifier: GPL-2.0-only */
/* The guests' code. No stack, no data but the input, no privileged instruction but the last. */
#include "guest.h"

	.section .rodata
	.globl guest_real_mode, guest_real_mode_end
	.globl guest_long_mode, guest_long_mode_end

	.code16
guest_real_mode:
	movw	GUEST_INPUT, %ax
	movw	$0x4f1b, %cx
	mulw	%cx
	addw	$0x3c21, %ax
	outw	%ax, $GUEST_PORT
	hlt
guest_real_mode_end:

	.code64
guest_long_mode:
	movq	GUEST_INPUT, %rax
	movq	%rax, %rbx
	movabsq	$0x9e3779b97f4a7c15, %rcx
	imulq	%rcx, %rax
	rolq	$23, %rbx
	addq	%rbx, %rax
	outl	%eax, $GUEST_PORT
	shrq	$32, %rax
	outl	%eax, $GUEST_PORT
	hlt
guest_long_mode_end:

	.section .note.GNU-stack, "", @progbits
