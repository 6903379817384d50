/*
 * The kernel's own ways to lead code elsewhere, as its headers write them down (arch/x86/include/asm, 6.1 to 7.2): tables
 * that its loader reads, code in sections of its own, calls that are patched. holds_... and breaks_... as in features.c.
 */
#define noinline __attribute__((__noinline__))
#define used __attribute__((__used__))
#define always_inline inline __attribute__((__always_inline__))
#define cold __attribute__((__cold__))
#define in_section(name) __attribute__((section(name)))
#ifndef randomized
#define randomized
#endif
#define unlikely(x) __builtin_expect(!!(x), 0)

void first(void);
void then(void);
int something(void);
void *an_object(void);
void report(const char *why) cold;
void *memcpy(void *to, const void *from, unsigned long size);
void fill_in_bytes(char *bytes, int count);
int on_each_cpu_cond_mask(void *cond, void (*func)(void *), void *info, int wait, void *mask);
int __cpuhp_setup_state(int state, const char *name, int invoke, int (*startup)(unsigned int),
			int (*teardown)(unsigned int), int multi);
struct key;
void static_key_enable(struct key *key);
void __static_call_update(void *key, void *trampoline, void *function);

/* Direct calls and tail calls, also of functions in other sections. */

static noinline in_section(".init.text") int set_up(int how)
{
	if (how)
		report("how");
	first();
	return how ? something() : 0;
}

static noinline int go(int how)
{
	then();
	return something() + how;
}

static noinline int forget(int how)
{
	return something() - how;
}

static noinline int set_up_or_forget(int how)
{
	return how > 3 ? set_up(how) : forget(how);
}

used in_section(".init.text") int holds_tail_call(int how)
{
	int r = set_up(how);

	return r ? r : go(how);
}

used int breaks_tail_call(int how)
{
	int r = set_up_or_forget(how);

	return r ? r : go(how);
}

/* What happens rarely is in a section of its own. */

static noinline int rare(int how, int all)
{
	if (unlikely(how > 100)) {
		report("more than a hundred");
		if (all)
			first();
		report("really");
		return how * 3;
	}
	first();
	return something();
}

used int holds_cold(int how)
{
	int r = rare(how, 1);

	then();
	return r;
}

used int breaks_cold(int how)
{
	int r = rare(how, 0);

	then();
	return r;
}

/* A table of functions that is handed over by pointer, copied, and then used: from memory and through static calls. */

struct ops {
	const char *name;
	int (*set_up)(int how);
	int (*go)(int how);
	unsigned long size;
	int (*more[2])(int how);
} randomized;

struct init_ops {
	int (*early)(void);
	const struct ops *runtime;
	int (*late)(int how);
} randomized;

static struct ops current;

static noinline int use(const struct init_ops *ops, int how)
{
	int r = ops->early();

	if (r)
		return r;
	memcpy(&current, ops->runtime, sizeof(current));
	r = current.more[1](how);
	if (r)
		return r;
	return ops->late(how);
}

static int early(void)
{
	return something();
}

static const struct ops right_ops = {
	.name = "right", .set_up = forget, .go = go, .size = 64, .more = { forget, set_up }
};
static const struct ops wrong_ops = {
	.name = "wrong", .set_up = set_up, .go = go, .size = 64, .more = { set_up, forget }
};
static const in_section(".init.rodata") struct init_ops right_init_ops = {
	.early = early, .runtime = &right_ops, .late = go
};
static const in_section(".init.rodata") struct init_ops wrong_init_ops = {
	.early = early, .runtime = &wrong_ops, .late = go
};

used int holds_copied_table(int how)
{
	return use(&right_init_ops, how);
}

used int breaks_copied_table(int how)
{
	return use(&wrong_init_ops, how);
}

/* Static calls: a trampoline that jumps to the function, until the kernel is told of another one. */

#define STATIC_CALL(name, code)                                                                  \
	extern char __SCK__##name[], __SCT__##name[];                                            \
	int call_##name(int how) __asm__("__SCT__" #name);                                       \
	__asm__(".pushsection .data\n.balign 8\n.globl __SCK__" #name "\n__SCK__" #name ": .quad 0, 0\n.popsection\n" \
		".pushsection .static_call.text, \"ax\"\n.balign 4\n.globl __SCT__" #name "\n"   \
		"__SCT__" #name ": " code "\n.byte 0x0f, 0xb9, 0xcc\n"                           \
		".type __SCT__" #name ", @function\n.size __SCT__" #name ", . - __SCT__" #name "\n.popsection")
#define static_call_update(name, function) __static_call_update(__SCK__##name, __SCT__##name, (void *)(function))

STATIC_CALL(to_set_up, ".byte 0xe9\n.long set_up_for_static_calls - (. + 4)");
STATIC_CALL(to_nothing, "ret\nint3\nnop\nnop\nnop");
STATIC_CALL(to_either, "ret\nint3\nnop\nnop\nnop");
STATIC_CALL(from_table, "ret\nint3\nnop\nnop\nnop");

used noinline int set_up_for_static_calls(int how)
{
	return set_up(how);
}

used int holds_static_call(int how)
{
	call_to_set_up(how);
	return go(how);
}

used int breaks_static_call(int how)
{
	call_to_nothing(how);
	return go(how);
}

used int breaks_static_call_that_is_updated_sometimes(int how)
{
	static_call_update(to_either, forget);
	if (how > 5)
		static_call_update(to_either, set_up);
	call_to_either(how);
	then();
	return 0;
}

static noinline void update(const struct ops *ops)
{
	memcpy(&current, ops, sizeof(current));
	static_call_update(from_table, current.set_up);
}

used int holds_static_call_updated_from_a_table(int how)
{
	update(&wrong_ops);
	call_from_table(how);
	then();
	return 0;
}

/* Functions that the kernel is to run. */

struct work {
	int (*what)(int how);
	int how;
} randomized;

static void do_work(void *info)
{
	struct work *work = info;

	work->what(work->how);
}

used int holds_callback_with_its_argument(int how)
{
	struct work work = { .what = forget, .how = how };

	on_each_cpu_cond_mask(0, do_work, &work, 1, 0);
	first();
	then();
	return 0;
}

used int breaks_callback_with_its_argument(int how)
{
	struct work work = { .what = go, .how = how };

	on_each_cpu_cond_mask(0, do_work, &work, 1, 0);
	first();
	return 0;
}

static int cpu_starts(unsigned int cpu)
{
	return go(cpu);
}

static int cpu_stops(unsigned int cpu)
{
	return forget(cpu);
}

used int holds_cpu_hotplug(void)
{
	first();
	return __cpuhp_setup_state(1, "a/b:c", 1, cpu_starts, cpu_stops, 0);
}

used int breaks_cpu_hotplug(void)
{
	int r = __cpuhp_setup_state(1, "a/b:c", 1, cpu_starts, cpu_stops, 0);

	first();
	return r;
}

/* Alternatives: the kernel may have put other code there, for CPUs with a feature. 6.1's entries have 12 bytes. */

#define FEATURE_ALWAYS 117
#define ALTERNATIVE_ENTRY(site, end, replacement, replacement_end, feature)                      \
	".pushsection .altinstructions, \"a\"\n.long " site " - .\n.long " replacement " - .\n"  \
	".word " feature "\n.byte " end " - " site "\n.byte " replacement_end " - " replacement "\n.popsection\n"
#define REPLACEMENT(label, code, end)                                                            \
	".pushsection .altinstr_replacement, \"ax\"\n" label ": " code "\n" end ":\n.popsection\n"
#define ALTERNATIVE(old, new, feature)                                                           \
	"661:\n\t" old "\n662:\n"                                                                \
	".skip -(((6652f-6651f)-(662b-661b)) > 0) * ((6652f-6651f)-(662b-661b)), 0x90\n663:\n"   \
	ALTERNATIVE_ENTRY("661b", "663b", "6651f", "6652f", feature) REPLACEMENT("6651", new, "6652")

#define CLOBBERS "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc"

used noinline int holds_alternative(void)
{
	an_object();
	__asm__ volatile(ALTERNATIVE("call first", "nop\ncall first", "100") : : : CLOBBERS);
	then();
	return something();
}

used noinline int breaks_alternative(void)
{
	an_object();
	__asm__ volatile(ALTERNATIVE("call first", "nop", "100") : : : CLOBBERS);
	then();
	return something();
}

used noinline int holds_alternative_that_is_always_there(void)
{
	an_object();
	__asm__ volatile(ALTERNATIVE("nop", "call first", "117") : : : CLOBBERS);
	then();
	return something();
}

/* pv_ops: calls through the kernel's table that keep all registers but the result's, or what stands there in their place. */

extern char kernel_operations[64];

static always_inline unsigned long flags_of_the_cpu(void)
{
	unsigned long flags;

	__asm__ volatile(ALTERNATIVE("call *kernel_operations+8(%%rip)", "pushf\npop %%rax", "200 | 1 << 15")
			 : "=a"(flags) : : "cc");
	return flags;
}

static always_inline void let_go(unsigned long *lock)
{
	__asm__ volatile(ALTERNATIVE("call *kernel_operations+16(%%rip)", "movb $0, (%%rdi)", "200 | 1 << 15")
			 : : "D"(lock) : "rax", "memory", "cc");
}

static noinline int with_flags(const struct ops *ops, int how)
{
	if (flags_of_the_cpu() & 0x200)
		report("flags");
	return ops->set_up(how);
}

used int holds_paravirt(int how)
{
	int r;

	current.set_up = set_up;
	r = with_flags(&current, how);
	return go(r);
}

used int breaks_paravirt(int how)
{
	int r;

	current.set_up = forget;
	r = with_flags(&current, how);
	return go(r);
}

static noinline void with_lock(unsigned long *lock)
{
	let_go(lock);
}

used int breaks_paravirt_that_writes(void)
{
	current.size = 1;
	with_lock(&current.size);
	if (current.size)
		first();
	then();
	return 0;
}

used int holds_paravirt_that_writes(void)
{
	current.size = 1;
	with_lock(&current.size);
	if (!current.size)
		return 0;
	first();
	then();
	return 0;
}

/* static_cpu_has(): patched to one of two jumps before any code of the module is run. */

static char capabilities[64];

#define STATIC_CPU_HAS(name, feature)                                                            \
	static always_inline int name(void)                                                      \
	{                                                                                        \
		__asm__ goto("661:\n\tjmp 6f\n662:\n"                                            \
			     ".skip -(((6654f-6653f)-(662b-661b)) > 0) * ((6654f-6653f)-(662b-661b)), 0x90\n663:\n" \
			     ALTERNATIVE_ENTRY("661b", "663b", "6653f", "6654f", "117")          \
			     ALTERNATIVE_ENTRY("661b", "663b", "6655f", "6656f", feature)        \
			     REPLACEMENT("6653", "jmp %l[no]", "6654") REPLACEMENT("6655", "", "6656") \
			     ".pushsection .altinstr_aux, \"ax\"\n6:\n testb $4, %c[byte](%%rip)\n jnz %l[yes]\n" \
			     " jmp %l[no]\n.popsection\n"                                        \
			     : : [byte] "i"(&capabilities[3]) : : yes, no);                      \
	yes:                                                                                     \
		return 1;                                                                        \
	no:                                                                                      \
		return 0;                                                                        \
	}

STATIC_CPU_HAS(has_this, "200")
STATIC_CPU_HAS(has_that, "201")
STATIC_CPU_HAS(lacks_this, "200 | 1 << 15")

used int holds_cpu_feature(void)
{
	if (has_this())
		first();
	something();
	if (has_this())
		then();
	return 0;
}

used int holds_cpu_feature_or_none(void)
{
	if (lacks_this())
		something();
	else
		first();
	if (has_this())
		then();
	return 0;
}

used int breaks_cpu_feature(void)
{
	if (has_this())
		first();
	if (has_that())
		then();
	return 0;
}

/* Jump labels: a jump or none, as a key says; the file may have either. */

struct key {
	int enabled;
	unsigned long type;
};

static struct key this_key, that_key;

#define JUMP_LABEL(code, key, branch)                                                            \
	__asm__ goto("1: " code "\n.pushsection __jump_table, \"aw\"\n.balign 8\n.long 1b - .\n.long %l[yes] - .\n" \
		     ".quad %c0 + %c1 - .\n.popsection\n" : : "i"(key), "i"(branch) : : yes)

static always_inline int static_branch_unlikely(struct key *const key)
{
	JUMP_LABEL(".byte 0x0f, 0x1f, 0x44, 0x00, 0x00", key, 0);
	return 0;
yes:
	return 1;
}

static always_inline int static_branch_likely(struct key *const key)
{
	JUMP_LABEL(".byte 0xe9\n.long %l[yes] - (. + 4)", key, 1);
	return 1;
yes:
	return 0;
}

used int holds_jump_label(void)
{
	if (static_branch_unlikely(&this_key))
		first();
	something();
	if (static_branch_likely(&this_key))
		then();
	return 0;
}

used int breaks_jump_label(void)
{
	if (static_branch_unlikely(&this_key))
		first();
	if (static_branch_unlikely(&that_key))
		then();
	return 0;
}

used int breaks_jump_label_that_the_file_has_as_a_jump(void)
{
	if (static_branch_likely(&this_key))
		then();
	first();
	return 0;
}

used int breaks_jump_label_that_is_enabled(void)
{
	if (static_branch_unlikely(&this_key))
		first();
	static_key_enable(&this_key);
	if (static_branch_unlikely(&this_key))
		then();
	return 0;
}

used int holds_key_known(void)
{
	if (static_branch_unlikely(&that_key))
		then();
	first();
	then();
	return that_key.enabled;
}

used int breaks_key_known(void)
{
	if (static_branch_likely(&that_key))
		first();
	then();
	return that_key.enabled;
}

/* BUG() and WARN(). */

#define TRAP(flags)                                                                              \
	__asm__ volatile("1: ud2\n.pushsection __bug_table, \"aw\"\n2: .long 1b - .\n.long 0\n.word 17\n.word %c0\n" \
			 ".org 2b + 12\n.popsection" : : "i"(flags))

used int holds_bug_entry(void)
{
	if (something())
		first();
	else
		TRAP(0);
	then();
	return 0;
}

used int breaks_warning(void)
{
	if (something())
		first();
	else
		TRAP(1);
	then();
	return 0;
}

/* An instruction that may fault goes on elsewhere. */

static noinline int fetch(int *from)
{
	int value = 5, error = 0;

	__asm__ volatile("1: mov (%2), %0\n2:\n"
			 ".pushsection .fixup, \"ax\"\n3: mov $-14, %1\n jmp 2b\n.popsection\n"
			 ".pushsection __ex_table, \"a\"\n.balign 4\n.long 1b - .\n.long 3b - .\n.long 1\n.popsection"
			 : "+r"(value), "+r"(error)
			 : "r"(from));
	return error;
}

used int holds_exception(void)
{
	if (fetch(an_object()))
		return -14;
	first();
	then();
	return 0;
}

used int breaks_exception(void)
{
	if (fetch(an_object()))
		then();
	first();
	return 0;
}

/* What compilers put in for sanitizers and the stack protector comes to nothing, or is the end. */

static int numbers[8], last;

used int holds_array(void)
{
	char bytes[40];
	int sum = 0;

	fill_in_bytes(bytes, sizeof(bytes));
	for (int i = 0; i < last; i++)
		sum += numbers[i & 7] << (bytes[i & 31] & 7);
	numbers[something() & 7] = sum;
	first();
	then();
	return bytes[sum & 31];
}

used int breaks_array(void)
{
	char bytes[40];

	fill_in_bytes(bytes, sizeof(bytes));
	for (int i = 0; i < last; i++)
		if (numbers[i & 7] > bytes[i & 31])
			first();
	then();
	return bytes[3];
}

/* The kernel may change its own variables whenever it is called. */

extern int kernel_variable;

used int breaks_kernel_variable(void)
{
	if (kernel_variable)
		first();
	something();
	if (kernel_variable)
		then();
	return 0;
}

used int holds_kernel_variable(void)
{
	if (kernel_variable)
		first();
	if (kernel_variable)
		then();
	return 0;
}

/* A call of the hypervisor is none to look for: it comes back, with something in %eax. */

static noinline int hypercall(int number)
{
	__asm__ volatile("vmcall" : "+a"(number) : : "memory");
	return number;
}

used int holds_hypercall(void)
{
	if (hypercall(0))
		first();
	else
		return 0;
	then();
	return 0;
}

used int breaks_hypercall(void)
{
	if (hypercall(0))
		then();
	first();
	return 0;
}

/* kCFI, as clang writes it: the type's hash stands before the function, and is compared before an indirect call. */

__asm__(".pushsection .text\n.balign 16\n__cfi_set_up_with_hash: mov $0x12345678, %eax\n.skip 11, 0x90\n"
	".type set_up_with_hash, @function\nset_up_with_hash: endbr64\njmp first\n"
	".size set_up_with_hash, . - set_up_with_hash\n"
	".type __cfi_set_up_with_hash, @function\n.size __cfi_set_up_with_hash, 16\n.popsection");
void set_up_with_hash(void);
void (*const hashed[])(void) = { set_up_with_hash };

used noinline int holds_hash(void)
{
	an_object();
	__asm__ volatile("mov hashed(%%rip), %%r11\nmov $0x12345678, %%r10d\nneg %%r10d\nadd -15(%%r11), %%r10d\n"
			 "je 1f\nud2\n1: call *%%r11" : : : CLOBBERS);
	then();
	return something();
}
