/*
 * What hangs together where ways meet, and in loops what no longer does when they come round: a value that was joined, its
 * copies, what was made of it, what is behind it, and memory that others may write to. holds_... and breaks_... as in
 * features.c.
 */
#define noinline __attribute__((__noinline__))
#define used __attribute__((__used__))
#define always_inline inline __attribute__((__always_inline__))

void first(void);
void then(void);
int something(void);
unsigned int a_number(void);
long a_long_number(void);
void *an_object(void);
void fill_in(int *what);
int smp_call_function_single(int cpu, void (*func)(void *), void *info, int wait);

static int kept, lent_here, numbers[8];
int others[8];

struct node {
	struct node *next;
	int value;
};

used int breaks_joined_copy(void)
{
	int one = something(), copy;

	if (something())
		one = something();
	copy = one;
	while (something()) {
		if (one != copy)
			then();
		one = something();
	}
	first();
	then();
	return copy;
}

used int holds_joined_copy(void)
{
	int one = something(), copy;

	if (something())
		one = something();
	copy = one;
	while (something()) {
		if (one != copy)
			then();
		one = copy = something();
	}
	first();
	then();
	return copy;
}

used int breaks_joined_copy_in_memory(void)
{
	int one = something();

	if (something())
		one = something();
	kept = one;
	while (something()) {
		if (one != kept)
			then();
		one = something();
	}
	first();
	then();
	return 0;
}

used int breaks_made_of_joined(void)
{
	int one = something(), product;

	if (something())
		one = something();
	product = one * one;
	while (something()) {
		if (product != one * one)
			then();
		one = something();
	}
	first();
	then();
	return product;
}

used int holds_made_of_joined(void)
{
	int one = something(), product;

	if (something())
		one = something();
	while (something()) {
		product = one * one;
		something();
		if (product != one * one)
			then();
		one = something();
	}
	first();
	then();
	return 0;
}

used int breaks_joined_low_part(void)
{
	long one = a_long_number();

	if (something())
		one = a_long_number();
	if ((int)one != 5)
		return 0;
	while (something()) {
		if ((int)one != 5)
			then();
		one = a_long_number();
	}
	first();
	then();
	return one >> 32;
}

used int breaks_joined_narrow(void)
{
	unsigned long one = a_number();

	if (something())
		one = a_number();
	while (something()) {
		if (one > 0xffffffff)
			then();
		one = a_long_number();
	}
	first();
	then();
	return one >> 32;
}

used int breaks_joined_pointer(void)
{
	struct node *node = an_object();

	if (something())
		node = an_object();
	node->value = 1;
	do {
		if (node->value != 1)
			then();
		node = node->next;
	} while (node);
	first();
	then();
	return 0;
}

used int breaks_memory_behind_pointer(void)
{
	int *there = an_object(), before;

	if (something())
		something();
	before = *there;
	do {
		if (*there != before)
			then();
	} while (something());
	first();
	then();
	return 0;
}

used int breaks_memory_that_was_given_away(void)
{
	int before;

	if (something())
		fill_in(&lent_here);
	before = lent_here;
	do {
		if (lent_here != before)
			then();
		fill_in(&lent_here);
	} while (something());
	first();
	then();
	return 0;
}

/* The same two numbers, compared as 32 bits and as 64. */

static always_inline int less_as_int(unsigned int a, unsigned int b)
{
	__asm__ goto("cmp %1, %0\njl %l[yes]" : : "r"(a), "r"(b) : "cc" : yes);
	return 0;
yes:
	return 1;
}

static always_inline int less_as_long(unsigned long a, unsigned long b)
{
	__asm__ goto("cmp %1, %0\njl %l[yes]" : : "r"(a), "r"(b) : "cc" : yes);
	return 0;
yes:
	return 1;
}

used int breaks_compared_as_long(void)
{
	unsigned int a = a_number(), b = a_number();

	if (less_as_int(a, b))
		first();
	if (less_as_long(a, b))
		then();
	return 0;
}

used int holds_compared_as_long(void)
{
	unsigned int a = a_number(), b = a_number();

	if (less_as_long(a, b))
		first();
	if (less_as_long(a, b))
		then();
	return 0;
}

/* A write at an index that is not known. */

used int breaks_index(void)
{
	numbers[3] = 0;
	numbers[something() & 7] = 1;
	if (!numbers[3])
		first();
	then();
	return 0;
}

used int breaks_index_in_a_loop(int count)
{
	for (int i = 0; i < 8; i++)
		numbers[i] = 0;
	for (int i = something(); i < 8; i++)
		numbers[i] = 1;
	if (!numbers[3])
		first();
	then();
	return 0;
}

used int breaks_index_on_the_stack(void)
{
	volatile int local[8] = { 0 };

	local[something() & 7] = 1;
	if (!local[3])
		first();
	then();
	return 0;
}

used int holds_index(void)
{
	kept = 0;
	numbers[3] = 0;
	others[something() & 7] = 1;
	if (!numbers[3] && !kept)
		first();
	then();
	return 0;
}

static noinline int does_first(void)
{
	first();
	return 0;
}

static noinline int does_nothing(void)
{
	return something();
}

static int (*const table_there[6])(void) = {
	does_nothing, does_nothing, does_nothing, does_nothing, does_nothing, does_first,
};
static int (*table_here[6])(void);

static always_inline void copy_the_table(void)
{
	for (int each = 0; each < 6; each++) {
		table_here[each] = table_there[each];
		__asm__ volatile("" : : : "memory");
	}
}

used int holds_table_copied_one_by_one(void)
{
	copy_the_table();
	table_here[5]();
	then();
	return 0;
}

used int breaks_table_copied_one_by_one(void)
{
	copy_the_table();
	table_here[4]();
	then();
	first();
	return 0;
}

/* More objects, and functions, than a loop is gone round before its ways are joined for good. */
static int lent_a, lent_b, lent_c, lent_d, lent_e, lent_f, lent_g;

used int breaks_lent_one_object_after_the_other(void)
{
	int *p = &lent_a;

	while (something()) {
		*p = 1;
		p = p == &lent_a ? &lent_b : p == &lent_b ? &lent_c : p == &lent_c ? &lent_d :
		    p == &lent_d ? &lent_e : p == &lent_e ? &lent_f : &lent_g;
	}
	if (lent_g)
		then();
	first();
	then();
	return 0;
}

static int lent_which;
static noinline void lent_function_a(void *info) { lent_which = 1; }
static noinline void lent_function_b(void *info) { lent_which = 2; }
static noinline void lent_function_c(void *info) { lent_which = 3; }
static noinline void lent_function_d(void *info) { lent_which = 4; }
static noinline void lent_function_e(void *info) { lent_which = 5; }
static noinline void lent_function_f(void *info) { lent_which = 6; }
static noinline void lent_function_g(void *info) { then(); }

used int breaks_lent_one_function_of_many(void)
{
	void (*f)(void *) = lent_function_a;

	while (something())
		f = f == lent_function_a ? lent_function_b : f == lent_function_b ? lent_function_c :
		    f == lent_function_c ? lent_function_d : f == lent_function_d ? lent_function_e :
		    f == lent_function_e ? lent_function_f : lent_function_g;
	smp_call_function_single(0, f, 0, 1);
	first();
	then();
	return 0;
}

static int lent_later;

/* Where the pointer is kept nothing is yet when the loop begins. */
used int breaks_lent_pointer_on_the_stack(void)
{
	int *volatile p;
	int known = 0;

	while (something()) {
		if (known)
			*p = 1;
		p = &lent_later;
		known = something();
	}
	if (lent_later)
		then();
	first();
	then();
	return 0;
}
