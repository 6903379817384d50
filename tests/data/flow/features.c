/*
 * One function for each way in which compiled code can say what comes first. In each that is called holds_...,
 * first() has returned whenever then() is entered; in each that is called breaks_..., there is a way on which it has not.
 */
#define noinline __attribute__((__noinline__))
#define used __attribute__((__used__))

__attribute__((section(".modinfo"), __used__)) static const char modinfo[] = "name=flow\0license=GPL\0vermagic=none";
__attribute__((section(".gnu.linkonce.this_module"), __used__)) char __this_module[64];

/* The kernel's. */
void first(void);
void then(void);
int something(void);
void *an_object(void);
int smp_call_function_single(int cpu, void (*func)(void *), void *info, int wait);

int setting, count;

static noinline int may_fail(void)
{
	int r = something();

	if (r)
		return r < 0 ? r : -5;
	first();
	return 0;
}

used int holds_errno(void)
{
	int r = may_fail();

	if (r)
		return r;
	then();
	return something();
}

used int breaks_errno(void)
{
	int r = may_fail();

	then();
	return r;
}

used int holds_negative(void)
{
	if (may_fail() >= 0)
		then();
	return 0;
}

static noinline int may_find_nothing(void)
{
	return an_object() ? 0 : -12;
}

static noinline int only_if_found(void)
{
	int r = may_find_nothing();

	if (r)
		return r;
	first();
	return 0;
}

/* The errno is made of a mask of all bits or none. */
used int holds_masked_errno(void)
{
	if (only_if_found() < 0)
		return 1;
	then();
	return something();
}

used int breaks_masked_errno(void)
{
	if (only_if_found() < -12)
		return 1;
	then();
	return something();
}

used int holds_error_pointer(void)
{
	void *p = an_object();

	if ((unsigned long)p >= (unsigned long)-4095)
		return (long)p;
	first();
	then();
	return 0;
}

used int holds_same_condition(void)
{
	int wanted = setting;

	if (wanted)
		first();
	something();
	if (wanted)
		then();
	return 0;
}

used int breaks_other_condition(void)
{
	if (setting)
		first();
	if (count)
		then();
	return 0;
}

used int holds_after_loop(void)
{
	for (int i = 0; i < count; i++)
		something();
	first();
	for (int i = 0; i < 3; i++)
		then();
	return 0;
}

used int breaks_empty_loop(void)
{
	for (int i = 0; i < count; i++)
		first();
	then();
	return 0;
}

used int holds_counted_loop(void)
{
	for (int i = 0; i < 2; i++) {
		if (i == 0)
			first();
		else
			then();
		something();
	}
	return 0;
}

static noinline int pick(int n, int all)
{
	switch (n) {
	case 0: something(); first(); return 1;
	case 1: first(); return something();
	case 2: first(); something(); return 7;
	case 3: if (all) first(); return 2;
	case 4: first(); return 11;
	case 5: something(); something(); first(); return 13;
	default: first(); return 0;
	}
}

used int holds_switch(void)
{
	int r = pick(something(), 1);

	then();
	return r;
}

used int breaks_switch(void)
{
	int r = pick(something(), 0);

	then();
	return r;
}

struct ops {
	long unused;
	int (*set_up)(void);
	int (*go)(void);
};

static int ops_first(void)
{
	first();
	return something();
}

static int ops_then(void)
{
	then();
	return something();
}

static int ops_nothing(void)
{
	return something();
}

static const struct ops right = { 0, ops_first, ops_then };
static const struct ops wrong = { 0, ops_nothing, ops_then };

static noinline int run_ops(const struct ops *ops)
{
	int r = ops->set_up();

	return r ? r : ops->go();
}

used int holds_through_table(void)
{
	return run_ops(&right);
}

used int breaks_through_table(void)
{
	return run_ops(&wrong);
}

static void callback(void *info)
{
	then();
}

used int holds_callback(void)
{
	first();
	return smp_call_function_single(0, callback, 0, 1);
}

used int breaks_callback(void)
{
	int r = smp_call_function_single(0, callback, 0, 1);

	first();
	return r;
}

used int holds_bug(void)
{
	if (something())
		first();
	else
		__builtin_trap();
	then();
	return 0;
}

static noinline void out_parameter(int *p)
{
	*p = 1;
	first();
}

used int holds_memory(void)
{
	int done = 0;

	if (something())
		out_parameter(&done);
	if (done)
		then();
	return 0;
}

/* What the kernel was given a pointer to may be another number after it; what it was not given is not. */
void fill_in(int *p);
static int lent = 0, kept = 0;

used int breaks_lent(void)
{
	fill_in(&lent);
	if (lent)
		then();
	else
		first();
	return lent;
}

used int holds_not_lent(void)
{
	fill_in(&lent);
	if (kept)
		then();
	first();
	then();
	kept = lent;
	return 0;
}

/* The kernel may write to a caller's variable too, where a callee hands it on. */
static noinline void hand_on(int *p)
{
	fill_in(p);
}

used int breaks_given_by_a_callee(void)
{
	int number = 0;

	hand_on(&number);
	if (number)
		then();
	else
		first();
	return number;
}

/* Two pointers of which nothing is known may point to the same object. */
used int breaks_two_pointers_to_one_object(void)
{
	int *p = an_object(), *q = an_object();
	int before = *q;

	*p = something();
	if (*q != before)
		then();
	first();
	return before;
}

/* What an instruction that faults leaves is said by the exception table: here EX_TYPE_IMM_REG for %ebx. */
used int breaks_fault(void)
{
	int error = 0;

	__asm__ volatile("1: mov (%1), %%ecx\n2:\n"
			 ".pushsection __ex_table, \"a\"\n.balign 4\n.long 1b - .\n.long 2b - .\n.long 0xfff20311\n.popsection"
			 : "+b"(error)
			 : "r"(an_object())
			 : "ecx");
	if (error)
		then();
	else
		first();
	return error;
}

/* An instruction that has no operand in memory writes to the stack all the same, and nowhere else. */
static struct { void (*call)(void); } table = { first };

static noinline void through(void *unused, void (**call)(void))
{
	unsigned long flags;

	__asm__ volatile("pushf\npop %0" : "=r"(flags) : "D"(call) : "memory");
	(*call)();
}

used int holds_push_flags(void)
{
	through(0, &table.call);
	then();
	return 0;
}

/* Shifts, rotations and single bits: what they give says what went in. */
used int breaks_bits(void)
{
	unsigned int number = something(), shifted = number << 7 | number >> 25;

	if ((shifted & 0x80) && !(number & 2))
		then();
	first();
	return 0;
}

/* Holds, and is not always proved: no way on which then() comes too early can be, but only numbers tell. */
used int excludes_bits(void)
{
	unsigned int number = something();

	if ((number & 1) && !(number & 3))
		then();
	first();
	then();
	return 0;
}

/* What a function does not touch is there when it returns, and gcc counts on that where it has seen the function. */
static noinline unsigned int reads_register(unsigned int number)
{
	unsigned int low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
	return low | high;
}

static noinline int puts_register(unsigned int number, unsigned int *result)
{
	unsigned int value = reads_register(number);

	if (!value)
		return -5;
	*result = value;
	return 0;
}

used int breaks_kept_register(void)
{
	unsigned int value = 0;

	if (puts_register(something(), &value))
		return -5;
	if (!(value & 4))
		first();
	then();
	return 0;
}

/* The same bit, asked for in two ways. */
unsigned long word;

used int holds_same_bit(void)
{
	unsigned long all = *(volatile unsigned long *)&word;

	if (all >> 44 & 1)
		first();
	if (((volatile unsigned char *)&word)[5] & 0x10)
		then();
	return 0;
}

used int breaks_other_bit(void)
{
	unsigned long all = *(volatile unsigned long *)&word;

	if (all >> 44 & 1)
		first();
	if (((volatile unsigned char *)&word)[5] & 0x20)
		then();
	return 0;
}

/* Bits that were cleared, and are not looked at, make no other word of it; a CPU's capabilities are made so. */
used int holds_masked_twice(void)
{
	unsigned int one = something(), other = something(), fewer = one;

	__asm__("andl $0xfeffffff, %0" : "+r"(fewer));
	if ((one & 0x400000) | (other & 0x8))
		first();
	if ((fewer & 0x400000) | (other & 0x8))
		then();
	return 0;
}

used int breaks_masked_twice(void)
{
	unsigned int one = something(), other = something(), fewer = one;

	__asm__("andl $0xfeffffff, %0" : "+r"(fewer));
	if ((one & 0x400000) | (other & 0x8))
		first();
	if ((fewer & 0x800000) | (other & 0x8))
		then();
	return 0;
}

/* One more than none is one. */
static int users;

used int holds_count_of_users(void)
{
	if (users++)
		return 0;
	something();
	if (!--users)
		first();
	then();
	return 0;
}

used int breaks_count_of_users(void)
{
	if (users++)
		return 0;
	something();
	if (--users == 0)
		then();
	return 0;
}

/* A choice without a branch: NEG sets the carry where what it is given is not 0, and SBB makes all ones of that. */
static inline long all_ones_if(unsigned char x)
{
	long mask;

	__asm__("neg %b1\n\tsbb %0, %0" : "=r"(mask), "+q"(x) : : "cc");
	return mask;
}

used int holds_choice_without_branch(void)
{
	unsigned char x = something();

	if (x)
		first();
	if (all_ones_if(x))
		then();
	return 0;
}

used int breaks_choice_without_branch(void)
{
	unsigned char x = something();

	if (x)
		first();
	if (!all_ones_if(x))
		then();
	return 0;
}

/* The kernel runs what it is given on each CPU: one after the other, in any order. */
void on_each_cpu(void (*func)(void *), void *info, int wait);
int __cpuhp_setup_state(int state, const char *name, int invoke, int (*startup)(unsigned int),
			int (*teardown)(unsigned int), int multi);

static void calls_then(void *info)
{
	then();
}

static void calls_nothing(void *info)
{
}

used int breaks_given_one_of_two(void)
{
	on_each_cpu(something() ? calls_then : calls_nothing, 0, 1);
	first();
	then();
	return 0;
}

used int holds_given_one_of_two(void)
{
	first();
	on_each_cpu(something() ? calls_then : calls_nothing, 0, 1);
	return 0;
}

static int lent_enabled, lent_runs;

static int lent_on(unsigned int cpu)
{
	lent_enabled = 1;
	return 0;
}

static int lent_off(unsigned int cpu)
{
	if (lent_enabled)
		then();
	lent_enabled = 0;
	return 0;
}

used int breaks_lent_one_callback_after_the_other(void)
{
	__cpuhp_setup_state(1, "x", 1, lent_on, lent_off, 0);
	first();
	then();
	return 0;
}

static void lent_second_time(void *info)
{
	if (++lent_runs == 2)
		then();
}

used int breaks_lent_a_callback_twice(void)
{
	on_each_cpu(lent_second_time, 0, 1);
	first();
	then();
	return 0;
}

static int lent_steady;

static void lent_each_time_the_same(void *info)
{
	lent_steady = 1;
	if (lent_steady == 2)
		then();
}

used int holds_lent_a_callback_however_often(void)
{
	on_each_cpu(lent_each_time_the_same, 0, 1);
	first();
	then();
	return 0;
}

/* What is given to a function of the kernel's own is looked at by that. */
used int breaks_argument_of_the_kernels_own_function(void)
{
	void (*kernels_own)(void *);
	int x = 0;

	__asm__("movq $kernel_fn, %0" : "=r"(kernels_own));
	smp_call_function_single(0, kernels_own, &x, 1);
	if (x)
		then();
	first();
	return 0;
}

/* A bit number in a register leads out of the word. */
static unsigned long lent_bits[4];

static inline void set_bit_of(long nr, unsigned long *map)
{
	__asm__ volatile("btsq %1, %0" : "+m"(*map) : "r"(nr) : "memory");
}

static inline int bit_of(long nr, unsigned long *map)
{
	unsigned char r;

	__asm__ volatile("btq %2, %1; setc %0" : "=q"(r) : "m"(*map), "r"(nr) : "memory", "cc");
	return r;
}

used int breaks_lent_bit_in_another_word(void)
{
	set_bit_of(something(), lent_bits);
	if (lent_bits[1] & 1)
		then();
	first();
	return 0;
}

used int holds_lent_bit_far_away(void)
{
	set_bit_of(130, lent_bits);
	if (!(lent_bits[2] & 4))
		then();
	first();
	if (bit_of(130, lent_bits))
		then();
	return 0;
}

/* Source and target overlap. */
void *memmove(void *to, const void *from, unsigned long n);

static noinline void goes_first(void)
{
	first();
	something();
}

static noinline void goes_then(void)
{
	then();
	something();
}

used int breaks_overlapping_move(void)
{
	void (*table[3])(void) = { goes_first, goes_then, 0 };

	memmove(table + 1, table, 16);
	table[2]();
	first();
	then();
	return 0;
}
